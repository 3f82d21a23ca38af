"""Rerankers: scores of the same shortlists by baseline and candidate, and how they differ.

The embedded encoder searches all passages for each query of an inverse-cloze pair. The query's own passage, the
relevant one, and the nearest others are the shortlist that a reranker sorts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from kerf.config import Evaluation
from kerf.core.cache import artifact
from kerf.core.finite import check_finite
from kerf.data import corpora
from kerf.evaluate import common, fidelity, ranking
from kerf.evaluate.common import group
from kerf.evaluate.protocol import Comparison, Figures, Table
from kerf.models import registry
from kerf.models.families import causal, encoder, lengths

NEEDS_BASELINE = False
FIRST_STAGE = "minilm"  # the encoder that finds the shortlists
SHORTLIST = 20  # passages


@dataclass(frozen=True)
class CrossEncoderInputs:
    """Queries, passages, and the passages (queries, SHORTLIST) of each shortlist, the query's own passage first."""

    queries: list[str]
    passages: list[str]
    shortlists: ndarray
    documents: ndarray  # of each query
    left_out: int = 0  # queries without any token, or whose passage has none

    @property
    def all(self) -> list[str]:
        """Every text."""
        return self.queries + self.passages

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every query with every passage of its shortlist."""
        rows = zip(self.queries, self.shortlists, strict=True)
        return [(query, self.passages[index]) for query, row in rows for index in row]


@common.cached
def gather(folder: Path, spec: Evaluation) -> CrossEncoderInputs:
    """Queries and their shortlists, from the evaluation part of `spec.texts`. Raises InputError for too few passages."""
    tokenizer, pairs = causal.tokenizer(folder), corpora.cloze_pairs(spec.passages, spec.texts)
    queries, passages, owners = lengths.rows_with_tokens(tokenizer, "evaluation.passages", *pairs)
    count, first_stage = len(queries), registry.resolve(FIRST_STAGE)
    size, weights = min(SHORTLIST, count), registry.weights_digest(first_stage)
    key = {"encoder": weights, "queries": queries, "passages": passages, "shortlist": size}

    def make(made: Path) -> None:
        nearest = nearest_others(first_stage, queries, passages, size - 1)
        np.save(made / "shortlists.npy", np.column_stack([np.arange(count), nearest]))

    shortlists = np.load(artifact("shortlists", key, make) / "shortlists.npy")
    left_out = spec.passages - count
    return CrossEncoderInputs(queries, passages, shortlists, np.array(owners), left_out)


def nearest_others(folder: Path, queries: list[str], passages: list[str], count: int) -> ndarray:
    """Indices (queries, count) of the passages nearest to each query, nearest first, without its own (same index).

    folder: of an encoder that sentence-transformers opens; passages: more than count.
    """
    scores = _cosines(encoder.open_folder(folder), queries, passages)
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _cosines(opened: Any, queries: list[str], passages: list[str]) -> ndarray:
    options = {"batch_size": 64, "normalize_embeddings": True, "show_progress_bar": False}
    return opened.encode(queries, **options) @ opened.encode(passages, **options).T


def about(inputs: CrossEncoderInputs) -> str:
    """One line that describes the evaluation texts."""
    count, size = inputs.shortlists.shape
    others = f"the {size - 1} others that {FIRST_STAGE} finds nearest among {len(inputs.passages)}"
    return f"{count} queries, each with its own passage and {others}{lengths.left_out_note(inputs.left_out)}"


def documents(inputs: CrossEncoderInputs) -> int:
    """Number of independent documents, the units of the bootstrap."""
    return len(np.unique(inputs.documents))


def inference_request(inputs: CrossEncoderInputs, noise_floor: bool) -> dict:
    """JSON for `run_inference`; noise_floor: in other batches than the first measurement."""
    return common.batched_request(inputs.pairs, noise_floor)


def run_inference(opened: Any, request: dict, folder: Path) -> dict:
    """Write the outputs for all texts to `folder`; returns timings in seconds."""
    return common.run_shuffled(opened.predict, request, folder)


def latency_input(inputs: CrossEncoderInputs) -> dict:
    """JSON of one batch for `predict_once`."""
    shortlist = [inputs.passages[index] for index in inputs.shortlists[0]]
    return {"query": inputs.queries[0], "documents": shortlist}


def predict_once(opened: Any, request: dict) -> None:
    """One forward pass, which latency is measured on."""
    opened.rank(request["query"], request["documents"], show_progress_bar=False)


def compare(comparison: Comparison, inputs: CrossEncoderInputs) -> tuple[list[dict], dict]:
    """Metric rows, and the scores (queries, SHORTLIST) of both models; scores of every query and pair go to items.parquet."""
    encodings, shape = (comparison.base, comparison.other), inputs.shortlists.shape
    before, after = (common.read_outputs(path).reshape(shape) for path in encodings)
    common.write_items(comparison.folder, _items(inputs, before, after))
    rows = ranking.metrics(before, after, inputs.documents)
    return rows, {"scores": {"baseline": before.tolist(), "candidate": after.tolist()}}


def _items(inputs: CrossEncoderInputs, before: ndarray, after: ndarray) -> list:
    """Groups of items.parquet."""
    old, new = (1 / fidelity.ranks(scores, scores[:, :1]) for scores in (before, after))
    ones, queries = np.ones(len(old)), {"document": inputs.documents, "text": inputs.queries}
    same, first = before.argmax(1) == after.argmax(1), ranking.first_kept(before, after)
    order = ranking.kendall(before, after)
    query, position = (index.ravel() for index in np.indices(before.shape))
    pairs = {"document": inputs.documents[query], "left": query, "right": position}
    return [
        group("shortlist", candidate=new, baseline=old, **queries),
        group("same_first", candidate=same, baseline=ones, **queries),
        group("first_3", candidate=first, baseline=ones, **queries),
        group("order", candidate=order, baseline=ones, **queries),
        group("score", candidate=after.ravel(), baseline=before.ravel(), **pairs),
    ]


def glance(before: Any, after: Any, source: str) -> dict[str, float]:
    """How an opened candidate's scores agree with the baseline's, on a few pairs of the evaluation part."""
    stretches = corpora.query_passage_pairs(source, "evaluation")[: common.GLANCE_SIZE]
    queries, passages, _ = zip(*stretches, strict=True)
    pairs = [*zip(queries, passages, strict=True), *zip(queries, passages[1:], strict=False)]
    options = {"show_progress_bar": False}
    base, scores = (opened.predict(pairs, **options).astype(float) for opened in (before, after))
    check_finite(np.stack([base, scores], 1), pairs)
    varied = np.ptp(base) and np.ptp(scores)
    return {
        "correlation of scores": float(np.corrcoef(base, scores)[0, 1]) if varied else 0.0,
        "largest change": float(np.abs(scores - base).max()),
        "least score": float(base.min()),
        "greatest score": float(base.max()),
        "pairs": len(pairs),
    }


def first_stage_scores(inputs: CrossEncoderInputs) -> ndarray:
    """Scores (queries, SHORTLIST) by the encoder itself: the baseline that a reranker has to beat."""
    scores = _cosines(registry.open_model(FIRST_STAGE), inputs.queries, inputs.passages)
    return np.take_along_axis(scores, inputs.shortlists, 1).astype(float)


def draw(folder: Path, picture: dict) -> Figures:
    """Figures of a comparison with their alternative texts; picture: what `compare` returned beside the rows."""
    from kerf.charts import plots

    alt = "Dots: every pair's score by the baseline and by the candidate; right passages stand out from the others."
    return [(plots.scores(picture["scores"]), alt)]


def worst(model: str, folder: Path, picture: dict) -> Table:
    """Table of the items that changed most."""
    items = common.read_items(folder, "shortlist")
    before, after = 1 / items.baseline, 1 / items.candidate
    rows = items.assign(**{"rank before": before, "rank after": after, "query": items.text})
    fell = (after - before).sort_values(ascending=False, kind="stable").index[:5]
    rows = rows.loc[fell, ["rank before", "rank after", "query"]]
    return common.table(rows, "Five queries whose own passage fell farthest", precision=1)


def conclusion(values: dict[str, dict], picture: dict) -> str:
    """The result in sentences; values: metric rows by name."""
    lines = []
    for label, name in (("nDCG@10", "ndcg_10"), ("MRR", "mrr")):
        loss, whole = values[f"{name}_loss"], values[name]
        before, after = f"{whole['baseline']:.4f}", f"{whole['value']:.4f}"
        change = f"from {before} to {after}, difference {fidelity.formatted(loss, -1, plus=True)}"
        lines.append(f"{label} {fidelity.direction(loss)}: {change}.")
    same, score = values["same_first"], values["score_spearman"]
    flips = f"{same['lost']} right ones lost, {same['gained']} gained (McNemar p = {same['mcnemar_p']:.3f})"
    first = f"The same passage comes first for {same['value']:.1%} of {same['n']} queries: {flips}."
    return "\n".join([*lines, f"{first} Spearman of the scores {fidelity.formatted(score)}."])
