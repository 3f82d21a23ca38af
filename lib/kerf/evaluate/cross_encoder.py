"""Rerankers: scores of the same shortlists by both models, and everything that differs between them.

A query of an inverse-cloze pair is searched among all passages by the embedded encoder; its own passage and the nearest
others are the shortlist that a reranker puts in order. One passage of each is right.
"""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from kerf.config import Evaluation
from kerf.core.cache import artifact
from kerf.core.finite import check_finite
from kerf.data import corpora
from kerf.evaluate import fidelity, first_stage, per_item_scores, ranking
from kerf.models import registry
from kerf.models.families import causal, lengths

BATCH_SIZE, GLANCED_AT = 32, 64
NEEDS_BASE = False  # a model answers without knowing the baseline's answers
FIRST_STAGE = "minilm"  # the encoder that finds the shortlists
SHORTLIST = 20  # passages


@dataclass(frozen=True)
class Texts:
    """Queries, passages, the passages of each shortlist (queries, SHORTLIST), its own first, and the queries' documents."""

    queries: list[str]
    passages: list[str]
    shortlists: np.ndarray
    documents: np.ndarray
    left_out: int = 0  # queries that have no token, or whose passage has none

    @property
    def all(self) -> list[str]:
        """Every text."""
        return self.queries + self.passages

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every query with every passage of its shortlist."""
        return [
            (query, self.passages[index])
            for query, row in zip(self.queries, self.shortlists, strict=True)
            for index in row
        ]


def gather(model: str, spec: Evaluation) -> Texts:
    """Queries and their shortlists, of the evaluation part of `spec.texts`. Raises InputError for too few passages."""
    folder = registry.resolve(model)
    return _gather(
        str(lengths.inner(folder)),
        registry.weights_digest(folder),
        spec.texts,
        corpora.digest(spec.texts),
        spec.passages,
    )


@lru_cache(maxsize=2)
def _gather(reader: str, _weights: str, source: str, _texts: str, asked: int) -> Texts:
    queries, passages, documents = lengths.known(
        causal.tokenizer(reader), "evaluation.passages", *corpora.cloze_pairs(asked, source)
    )
    count = len(queries)
    encoder, size = registry.resolve(FIRST_STAGE), min(SHORTLIST, count)
    key = {
        "encoder": registry.weights_digest(encoder),
        "queries": queries,
        "passages": passages,
        "shortlist": size,
    }

    def make(folder: Path) -> None:
        found = first_stage.others(encoder, queries, passages, size - 1)
        np.save(folder / "shortlists.npy", np.concatenate([np.arange(count)[:, None], found], 1))

    return Texts(
        queries,
        passages,
        np.load(artifact("shortlists", key, make) / "shortlists.npy"),
        np.array(documents),
        asked - count,
    )


def about(everything: Texts) -> str:
    """What is measured on, in a line for a reader."""
    count, size = everything.shortlists.shape
    return f"{count} queries, each with its own passage and the {size - 1} others that {FIRST_STAGE} finds nearest among {len(everything.passages)}{lengths.said(everything.left_out)}"


def documents(everything: Texts) -> int:
    """Independent documents of the queries."""
    return len(np.unique(everything.documents))


def request(everything: Texts, again: bool) -> dict:
    """What the measured process is asked; `again`: other batches."""
    return {
        "pairs": everything.pairs,
        "batch_size": BATCH_SIZE if not again else BATCH_SIZE * 3 // 2,
    }


def answer(opened, request: dict, folder: Path) -> dict:
    """Score request["pairs"] into scores.safetensors, in their order. Returns the seconds it took."""
    from safetensors.numpy import save_file

    order = np.random.default_rng(request["seed"]).permutation(len(request["pairs"]))
    clock = time.perf_counter()
    found = opened.predict(
        [request["pairs"][index] for index in order],
        batch_size=request["batch_size"],
        show_progress_bar=False,
    )
    seconds = time.perf_counter() - clock
    scores = np.empty(len(found), np.float32)
    scores[order] = found
    check_finite(scores, request["pairs"])
    save_file({"scores": scores}, folder / "scores.safetensors")
    return {"encode_seconds": seconds}


def sample(everything: Texts) -> dict:
    """A query and its shortlist, for `ask`."""
    return {
        "query": everything.queries[0],
        "documents": [everything.passages[index] for index in everything.shortlists[0]],
    }


def ask(opened, asked: dict) -> None:
    """Put a shortlist in order, for its time."""
    opened.rank(asked["query"], asked["documents"], show_progress_bar=False)


def compare(folder: Path, everything: Texts, base: Path, other: Path) -> tuple[list[dict], dict]:
    """Metric rows and scores; what every query and pair got goes to items.parquet."""
    before, after = (_scores(path).reshape(everything.shortlists.shape) for path in (base, other))
    _write_items(folder / "items.parquet", everything, before, after)
    return ranking.metrics(before, after, everything.documents), {
        "scores": {"baseline": before.tolist(), "candidate": after.tolist()}
    }


def _scores(path: Path) -> np.ndarray:
    from safetensors.numpy import load_file

    scores = load_file(path / "scores.safetensors")["scores"].astype(np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("the model gives scores with NaN or infinity")
    return scores


def _write_items(path: Path, everything: Texts, before: np.ndarray, after: np.ndarray) -> None:
    old, new = (1 / fidelity.ranks(scores, scores[:, :1]) for scores in (before, after))
    known = {"document": everything.documents, "text": everything.queries}
    query, place = (each.ravel() for each in np.indices(before.shape))
    per_item_scores.write(
        path,
        [
            per_item_scores.group("shortlist", candidate=new, baseline=old, **known),
            per_item_scores.group(
                "same_first",
                candidate=before.argmax(1) == after.argmax(1),
                baseline=np.ones(len(old)),
                **known,
            ),
            per_item_scores.group(
                "first_3",
                candidate=ranking.first_kept(before, after),
                baseline=np.ones(len(old)),
                **known,
            ),
            per_item_scores.group(
                "order",
                candidate=ranking.kendall(before, after),
                baseline=np.ones(len(old)),
                **known,
            ),
            per_item_scores.group(
                "score",
                candidate=after.ravel(),
                baseline=before.ravel(),
                document=everything.documents[query],
                left=query,
                right=place,
            ),
        ],
    )


def glance(before, after, source: str) -> dict[str, float]:
    """A first look at an opened candidate beside the opened baseline, on a few pairs of the evaluation part."""
    queries, passages, _ = zip(*corpora.stretches(source, "evaluation")[:GLANCED_AT], strict=True)
    pairs = [*zip(queries, passages, strict=True), *zip(queries, passages[1:], strict=False)]
    scores = [
        opened.predict(pairs, show_progress_bar=False).astype(float) for opened in (before, after)
    ]
    for each in scores:
        check_finite(each, pairs)
    alike = float(np.corrcoef(*scores)[0, 1]) if min(map(np.ptp, scores)) else 0.0
    return {
        "correlation of scores": alike,
        "largest change": float(np.abs(scores[1] - scores[0]).max()),
        "least score": float(scores[0].min()),
        "greatest score": float(scores[0].max()),
        "pairs": len(pairs),
    }


def first_stage_scores(everything: Texts) -> np.ndarray:
    """The scores (queries, passages) that the encoder itself gives the shortlists: what a reranker has to beat."""
    opened = registry.open_model(FIRST_STAGE)
    options = {"batch_size": BATCH_SIZE, "normalize_embeddings": True, "show_progress_bar": False}
    scores = (
        opened.encode(everything.queries, **options)
        @ opened.encode(everything.passages, **options).T
    )
    return np.take_along_axis(scores, everything.shortlists, 1).astype(float)


def restored(model: str, candidate: str | Path, spec: Evaluation, base: Path) -> list[dict]:
    """Language models only: nothing."""
    return []


def draw(folder: Path, picture: dict) -> list[tuple]:
    """(figure, alt text) of a comparison."""
    from kerf.charts import plots

    alt = "Dots: every pair's score by the baseline and by the candidate; right passages stand out from the others."
    return [(plots.scores(picture["scores"]), alt)]


def worst(model: str, folder: Path, picture: dict):
    """Table of the five queries whose own passage fell farthest."""
    import pandas as pd

    found = pd.read_parquet(folder / "items.parquet")
    found = found[found.metric == "shortlist"]
    ranked = pd.DataFrame(
        {"rank before": 1 / found.baseline, "rank after": 1 / found.candidate, "query": found.text}
    )
    fell = (
        (ranked["rank after"] - ranked["rank before"])
        .sort_values(ascending=False, kind="stable")
        .index[:5]
    )
    return (
        ranked.loc[fell]
        .style.format(precision=1)
        .hide(axis="index")
        .set_caption("Five queries whose own passage fell farthest")
    )


def conclusion(values: dict[str, dict], picture: dict) -> str:
    """What a comparison says, in sentences. values: metric rows by name."""
    lines = []
    for what, name in (("nDCG@10", "ndcg_10"), ("MRR", "mrr")):
        row, whole = values[f"{name}_loss"], values[name]
        lines.append(
            f"{what} {fidelity.direction(row)}: from {whole['baseline']:.4f} to {whole['value']:.4f}, "
            f"difference {fidelity.formatted(row, -1, plus=True)}."
        )
    same, score = values["same_first"], values["score_spearman"]
    lines.append(
        f"The same passage comes first for {same['value']:.1%} of {same['n']} queries: {same['lost']} right ones lost, {same['gained']} "
        f"gained (McNemar p = {same['mcnemar_p']:.3f}). Spearman of the scores {fidelity.formatted(score)}."
    )
    return "\n".join(lines)
