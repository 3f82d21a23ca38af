"""How often intervals cover what they estimate: samples of whole documents, drawn from a pool of real ones.

The pool is of MiniLM's embeddings of evaluation text in pieces of five sentences (or three inverse-cloze pairs), each piece
a document. A metric's truth is its mean over all samples. `inside`: samples whose value lies inside its own interval.

    python benchmarks/intervals.py [--draws 300] [--documents 12 30 60] [--pieces 400]
"""

import argparse

import numpy as np

from kerf import pipeline
from kerf.config import Calibration
from kerf.core.cache import artifact
from kerf.data import corpora
from kerf.evaluate import fidelity, retrieval
from kerf.models import registry

MODEL, SENTENCES, PAIRS = "minilm", 5, 3
CHAINS = {bits: [{"quantize": {"method": "rtn", "bits": bits}}] for bits in (8, 4)}
NAMES = (
    "cosine_mean",
    "cosine_p01",
    "similarity_spearman",
    "neighbours_10",
    "drop_in_ndcg_10_ratio",
    "ndcg_10",
    "ndcg_10_loss",
    "ndcg_10_ratio",
    "retrieval_mrr",
)


def pieces(items: list, owners: list[int], size: int, count: int) -> list:
    """`count` random runs of `size` items of one document, joined."""
    by_document: dict[int, list] = {}
    for item, owner in zip(items, owners, strict=True):
        by_document.setdefault(owner, []).append(item)
    runs = [
        own[start : start + size]
        for own in by_document.values()
        for start in range(0, len(own) - size + 1, size)
    ]
    return [
        item
        for place in np.random.default_rng(0).permutation(len(runs))[:count]
        for item in runs[place]
    ]


def pool(count: int) -> dict[str, np.ndarray]:
    """Embeddings (texts, features) of the baseline and every candidate, by model and kind of text; made once and kept."""
    found = [
        (sentence, (name, place))
        for name in ("news", "wiki")
        for place, document in enumerate(corpora.documents(name, "evaluation"))
        for sentence in dict.fromkeys(corpora.sentences(document))
    ]
    rows = corpora.query_passage_pairs("wiki", "evaluation")
    pairs = pieces([row[:2] for row in rows], [row[2] for row in rows], PAIRS, count)
    asked = {"sentences": pieces(*map(list, zip(*found, strict=True)), SENTENCES, count)}
    asked |= dict(zip(("queries", "passages"), map(list, zip(*pairs, strict=True)), strict=True))

    def make(folder) -> None:
        made = {}
        for name, chain in {"baseline": [], **CHAINS}.items():
            opened = (
                registry.load(pipeline.build(MODEL, chain, Calibration(samples=8, max_length=64)))
                if chain
                else registry.open_model(MODEL)
            )
            for kind, own in asked.items():
                made[f"{name} {kind}"] = opened.encode(
                    own, normalize_embeddings=True, show_progress_bar=False
                )
        np.savez(folder / "pool.npz", **made)

    with np.load(artifact("coverage", {"texts": asked}, make) / "pool.npz") as kept:
        return {name: kept[name].astype(float) for name in kept}


def sample(kept: dict[str, np.ndarray], bits: int, documents: int, seed: int) -> dict[str, dict]:
    """Metric rows, by name, of so many random documents of the pool."""
    chosen = np.random.default_rng(seed).choice(
        len(kept["baseline sentences"]) // SENTENCES, documents, replace=False
    )

    def rows(name: str, kind: str, size: int) -> np.ndarray:
        return (
            kept[f"{name} {kind}"]
            .reshape(-1, size, kept["baseline sentences"].shape[1])[chosen]
            .reshape(documents * size, -1)
        )

    before, after = (rows(name, "sentences", SENTENCES) for name in ("baseline", bits))
    owners, of_pairs = (np.repeat(np.arange(documents), size) for size in (SENTENCES, PAIRS))
    queries, passages = (
        [rows(name, kind, PAIRS) for name in ("baseline", bits)] for kind in ("queries", "passages")
    )
    relevant = [{number: 1.0} for number in range(len(of_pairs))]
    similar = [q @ p.T for q, p in ((queries[0], passages[0]), (queries[1], passages[0]))]
    old, drop = (retrieval.scores(scores, relevant) for scores in similar)
    new = retrieval.scores(queries[1] @ passages[1].T, relevant)
    found = fidelity.cosines(before, after, owners) + fidelity.similarities(before, after, owners)
    found += retrieval.drop_in(old, drop, retrieval.first_kept(*similar), of_pairs)
    found += retrieval.re_index(old, new, of_pairs)
    return {row["name"]: row for row in found}


def main() -> None:
    """Print a line for every width, number of documents and metric."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--documents", type=int, nargs="+", default=[12, 30, 60])
    parser.add_argument("--pieces", type=int, default=400, help="documents of the pool")
    parsed = parser.parse_args()
    kept = pool(parsed.pieces)
    print(f"{'':10} {'documents':>9} {'metric':20} {'truth':>9} covered inside")
    for bits in CHAINS:
        for documents in parsed.documents:
            samples = [sample(kept, bits, documents, seed) for seed in range(parsed.draws)]
            for name in NAMES:
                rows = [each[name] for each in samples]
                truth = np.mean([row["value"] for row in rows])
                spans = [
                    (
                        -np.inf if row["low"] is None else row["low"],
                        np.inf if row["high"] is None else row["high"],
                    )
                    for row in rows
                ]
                covered = np.mean([low <= truth <= high for low, high in spans])
                inside = np.mean(
                    [
                        low <= row["value"] <= high
                        for row, (low, high) in zip(rows, spans, strict=True)
                    ]
                )
                print(
                    f"rtn {bits} bits {documents:9} {name:20} {truth:9.5f} {covered:7.3f} {inside:6.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
