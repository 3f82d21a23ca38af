"""Encoders: embeddings of the same texts by both models, and everything that differs between them."""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from kerf.config import Evaluation
from kerf.core.finite import check_finite
from kerf.data import corpora
from kerf.evaluate import fidelity, per_item_scores
from kerf.models import registry
from kerf.models.families import causal, lengths

BATCH_SIZE, GLANCED_AT = 32, 64
NEEDS_BASE = False  # a model answers without knowing the baseline's answers


@dataclass(frozen=True)
class Texts:
    """All evaluation texts, and where each set of them stands in the list."""

    all: list[str]
    where: dict[str, slice]
    documents: dict[str, np.ndarray]
    human: dict[str, tuple]
    left_out: int = 0  # texts without any token


def gather(model: str, spec: Evaluation) -> Texts:
    """Sentences, retrieval queries and passages, and every human-rated text, of which the model's tokenizer knows something.
    Raises InputError for too few."""
    folder = registry.resolve(model)
    return _gather(
        str(lengths.inner(folder)),
        registry.weights_digest(folder),
        spec,
        corpora.digest(spec.texts),
    )


@lru_cache(maxsize=2)
def _gather(reader: str, _weights: str, spec: Evaluation, _texts: str) -> Texts:
    tokenizer = causal.tokenizer(reader)
    asked, found = (
        corpora.evaluation_sentences(spec.texts, spec.sentences),
        corpora.cloze_pairs(spec.passages),
    )
    sentences, sentence_documents = lengths.known(tokenizer, "evaluation.sentences", *asked)
    queries, passages, passage_documents = lengths.known(tokenizer, "evaluation.passages", *found)
    left_out = len(asked[0]) - len(sentences) + len(found[0]) - len(passages)
    pairs = {name: _known_pairs(tokenizer, *rated) for name, rated in corpora.human_pairs().items()}
    sets = {"sentences": sentences, "queries": queries, "passages": passages}
    sets |= {name: rated for name, (rated, *_) in pairs.items()}
    where, all_texts = {}, []
    for name, own in sets.items():
        where[name] = slice(len(all_texts), len(all_texts) + len(own))
        all_texts += own
    documents = {"sentences": np.array(sentence_documents), "passages": np.array(passage_documents)}
    human = {
        n: (np.array(left), np.array(right), score) for n, (_, left, right, score) in pairs.items()
    }
    return Texts(all_texts, where, documents, human, left_out)


def _known_pairs(
    tokenizer, rated: list[str], left: list[int], right: list[int], scores: list[float]
) -> tuple:
    """Human-rated pairs of texts that have a token, numbered anew."""
    good = np.array(lengths.with_tokens(tokenizer, rated))
    if good.all():
        return rated, left, right, scores
    both, place = good[left] & good[right], np.cumsum(good) - 1
    kept = (
        place[left][both].tolist(),
        place[right][both].tolist(),
        np.array(scores)[both].tolist(),
    )
    return [text for text, known in zip(rated, good, strict=True) if known], *kept


def about(everything: Texts) -> str:
    """What is measured on, in a line for a reader."""
    counts = {name: where.stop - where.start for name, where in everything.where.items()}
    return f"{counts} texts; {sum(len(scores) for _, _, scores in everything.human.values())} human-rated pairs{lengths.said(everything.left_out)}"


def documents(everything: Texts) -> int:
    """Independent documents of the set of texts that has fewest."""
    return min(len(np.unique(owners)) for owners in everything.documents.values())


def request(everything: Texts, again: bool) -> dict:
    """What the measured process is asked; `again`: other batches."""
    return {"texts": everything.all, "batch_size": BATCH_SIZE if not again else BATCH_SIZE * 3 // 2}


def answer(opened, request: dict, folder: Path) -> dict:
    """Encode request["texts"] into embeddings.safetensors, rows in their order. Returns the seconds it took."""
    from safetensors.numpy import save_file

    order = np.random.default_rng(request["seed"]).permutation(len(request["texts"]))
    shuffled = [request["texts"][index] for index in order]
    clock = time.perf_counter()
    rows = opened.encode(
        shuffled, batch_size=request["batch_size"], show_progress_bar=False, convert_to_numpy=True
    )
    seconds = time.perf_counter() - clock
    embeddings = np.empty_like(rows)
    embeddings[order] = rows
    check_finite(embeddings, request["texts"])
    save_file({"embeddings": embeddings.astype(np.float32)}, folder / "embeddings.safetensors")
    return {"encode_seconds": seconds}


def sample(everything: Texts) -> list[str]:
    """A batch of sentences, for `ask`."""
    return everything.all[everything.where["sentences"]][:BATCH_SIZE]


def ask(opened, sentences: list[str]) -> None:
    """Encode a batch, for its time."""
    opened.encode(sentences, batch_size=BATCH_SIZE, show_progress_bar=False)


def compare(folder: Path, everything: Texts, base: Path, other: Path) -> tuple[list[dict], dict]:
    """Metric rows and histograms; the scores of every sentence, query and pair go to items.parquet."""
    before, after = (_embeddings(path, everything) for path in (base, other))
    sentences, passages = everything.documents["sentences"], everything.documents["passages"]
    wiki = (before["passages"], after["passages"], passages)
    pairs = [(e["queries"], e["passages"]) for e in (before, after)]
    retrieved, ranks = fidelity.retrieval(*pairs, passages)
    rows = fidelity.cosines(before["sentences"], after["sentences"], sentences, wiki)
    rows += fidelity.similarities(before["sentences"], after["sentences"], sentences)
    rows += fidelity.human(everything.human, before, after) + retrieved
    per_item_scores.write_encoder(folder / "items.parquet", everything, before, after, ranks)
    return rows, _histograms(before["sentences"], after["sentences"])


def _embeddings(path: Path, everything: Texts) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    rows = load_file(path / "embeddings.safetensors")["embeddings"].astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("the model gives embeddings with NaN or infinity")
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return {name: rows[where] for name, where in everything.where.items()}


def _histograms(before: np.ndarray, after: np.ndarray) -> dict:
    """Counts of pairwise sentence similarities of both models, over the same edges."""
    upper = np.triu_indices(len(before), 1)
    values = [(e @ e.T)[upper] for e in (before, after)]
    edges = np.linspace(min(v.min() for v in values), max(v.max() for v in values) + 1e-9, 61)
    counts = [np.histogram(v, edges)[0].tolist() for v in values]
    return {"edges": edges.tolist(), "baseline": counts[0], "candidate": counts[1]}


def glance(before, after, source: str) -> dict[str, float]:
    """A first look at an opened candidate beside the opened baseline, on a few sentences of the evaluation part."""
    sentences = corpora.evaluation_sentences(source, GLANCED_AT)[0]
    rows = [
        opened.encode(sentences, normalize_embeddings=True, show_progress_bar=False)
        for opened in (before, after)
    ]
    for each in rows:
        check_finite(each, sentences)
    cosine = (rows[0] * rows[1]).sum(1)
    return {
        "mean cosine": float(cosine.mean()),
        "lowest": float(cosine.min()),
        "sentences": len(cosine),
    }


def restored(model: str, candidate: str | Path, spec: Evaluation, base: Path) -> list[dict]:
    """Language models only: nothing."""
    return []


def draw(folder: Path, picture: dict) -> list[tuple]:
    """(figure, alt text) of a comparison."""
    import pandas as pd

    from kerf.charts import plots

    scores = pd.read_parquet(folder / "items.parquet")
    cosine = scores[scores.metric == "cosine"].candidate.tolist()
    return [
        (
            plots.similarity_distributions(picture),
            "Histogram: cosine similarity of all pairs of sentences, baseline and candidate.",
        ),
        (plots.cosines(cosine), "Line: cosine of every sentence to the baseline, sorted."),
    ]


def worst(model: str, folder: Path, picture: dict):
    """Table of the five sentences that moved farthest."""
    import pandas as pd

    scores = pd.read_parquet(folder / "items.parquet")
    moved = (
        scores[scores.metric == "cosine"].sort_values("candidate").head(5)[["candidate", "text"]]
    )
    return (
        moved.style.format({"candidate": "{:.4f}"})
        .hide(axis="index")
        .set_caption("Five sentences that moved farthest")
    )


def conclusion(values: dict[str, dict], picture: dict) -> str:
    """What a comparison says, in sentences. values: metric rows by name."""
    mean = values["cosine_mean"]
    lines = [f"Mean cosine {fidelity.formatted(mean)} on {mean['n']} sentences."]
    for what, name in (
        ("Agreement with people", "human_spearman_loss"),
        ("Retrieval (MRR)", "retrieval_mrr_loss"),
    ):
        row = values[name]
        lines.append(
            f"{what} {fidelity.direction(row)}: difference {fidelity.formatted(row, -1, plus=True)}."
        )
    return "\n".join(lines)
