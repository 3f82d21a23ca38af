"""Rerankers: scores of the same shortlists by baseline and candidate, and how they differ.

The embedded encoder searches all passages of a collection for each query. A passage that answers the query and the nearest
others that do not are the shortlist that a reranker sorts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from kerf.config import Evaluation
from kerf.core.cache import artifact
from kerf.core.errors import refuse
from kerf.core.finite import check_finite
from kerf.data import corpora, datasets
from kerf.evaluate import common, fidelity, ranking
from kerf.evaluate.common import group
from kerf.evaluate.protocol import Comparison, Figures, Table
from kerf.models import registry
from kerf.models.families import causal, encoder, lengths

NEEDS_BASELINE = False
FIRST_STAGE = "minilm"  # the encoder that finds the shortlists
SHORTLIST = 20  # passages


@dataclass(frozen=True)
class Shortlists:
    """Queries of a collection, and the passages (queries, SHORTLIST) of each shortlist, one that answers the query first."""

    collection: datasets.Retrieval
    passages: ndarray

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every query with every passage of its shortlist."""
        texts, rows = (
            self.collection.passages,
            zip(self.collection.queries, self.passages, strict=True),
        )
        return [(query, texts[index]) for query, row in rows for index in row]


@dataclass(frozen=True)
class CrossEncoderInputs:
    """Shortlists by collection."""

    sets: dict[str, Shortlists]
    left_out: int = 0  # queries without any token, or whose passage has none

    @property
    def all(self) -> list[str]:
        """Every text."""
        collections = [own.collection for own in self.sets.values()]
        return [text for own in collections for text in (*own.queries, *own.passages)]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every query with every passage of its shortlist, collection by collection."""
        return [pair for own in self.sets.values() for pair in own.pairs]


@common.cached
def gather(folder: Path, spec: Evaluation) -> CrossEncoderInputs:
    """Queries of every collection and their shortlists. Raises InputError for too few."""
    tokenizer, sets, asked = causal.tokenizer(folder), {}, 0
    for source in spec.retrieval:
        collection = datasets.retrieval(source, spec.queries, most=spec.corpus)
        asked += len(collection.queries)
        sets[collection.name] = _shortlists(common.readable(collection, tokenizer))
    left = sum(len(own.collection.queries) for own in sets.values())
    return CrossEncoderInputs(sets, asked - left)


def _shortlists(collection: datasets.Retrieval) -> Shortlists:
    first_stage = registry.resolve(FIRST_STAGE)
    others = len(collection.passages) - max(map(len, collection.relevant))
    if not others:
        accepted = "a collection in which every query has a passage that does not answer it"
        raise refuse("evaluation.retrieval", collection.name, accepted)
    size = min(SHORTLIST, 1 + others)
    key = {"encoder": registry.weights_digest(first_stage), "shortlist": size}
    key |= {"relevant": [sorted(grades.items()) for grades in collection.relevant]}
    key |= {"queries": collection.queries, "passages": collection.passages}

    def make(made: Path) -> None:
        best = [max(grades, key=grades.__getitem__) for grades in collection.relevant]
        nearest = nearest_others(first_stage, collection, size - 1)
        np.save(made / "shortlists.npy", np.column_stack([best, nearest]))

    return Shortlists(collection, np.load(artifact("shortlists", key, make) / "shortlists.npy"))


def nearest_others(folder: Path, collection: datasets.Retrieval, count: int) -> ndarray:
    """Indices (queries, count) of the passages nearest to each query, nearest first, without those that answer it.

    folder: of an encoder that sentence-transformers opens; passages: more than count.
    """
    scores = _cosines(encoder.open_folder(folder), collection.queries, collection.passages)
    for row, grades in zip(scores, collection.relevant, strict=True):
        row[list(grades)] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _cosines(opened: Any, queries: list[str], passages: list[str]) -> ndarray:
    options = {"batch_size": 64, "normalize_embeddings": True, "show_progress_bar": False}
    return opened.encode(queries, **options) @ opened.encode(passages, **options).T


def about(inputs: CrossEncoderInputs) -> str:
    """One line that describes the evaluation texts."""
    lines = []
    for name, own in inputs.sets.items():
        count, size = own.passages.shape
        others = f"the {size - 1} others that {FIRST_STAGE} finds nearest among {len(own.collection.passages)}"
        lines.append(f"{count} queries of {name}, each with a passage that answers it and {others}")
    return f"{'; '.join(lines)}{lengths.left_out_note(inputs.left_out)}"


def documents(inputs: CrossEncoderInputs) -> int:
    """Number of independent documents, the units of the bootstrap."""
    return min(len(np.unique(own.collection.documents)) for own in inputs.sets.values())


def inference_request(inputs: CrossEncoderInputs, noise_floor: bool, everything: bool) -> dict:
    """JSON for `run_inference`; noise_floor: in other batches than the first measurement."""
    return common.batched_request(inputs.pairs, noise_floor)


def run_inference(opened: Any, request: dict, folder: Path) -> dict:
    """Write the outputs for all texts to `folder`; returns timings in seconds."""
    return common.run_shuffled(opened.predict, request, folder)


def latency_input(inputs: CrossEncoderInputs) -> dict:
    """JSON of one batch for `predict_once`."""
    first = next(iter(inputs.sets.values()))
    shortlist = [first.collection.passages[index] for index in first.passages[0]]
    return {"query": first.collection.queries[0], "documents": shortlist}


def predict_once(opened: Any, request: dict) -> None:
    """One forward pass, which latency is measured on."""
    opened.rank(request["query"], request["documents"], show_progress_bar=False)


def compare(comparison: Comparison, inputs: CrossEncoderInputs) -> tuple[list[dict], dict]:
    """Metric rows, and the scores (queries, SHORTLIST) of both models; scores of every query and pair go to items.parquet."""
    outputs = [common.read_outputs(path) for path in (comparison.base, comparison.other)]
    rows, groups, start = [], [], 0
    pictures: dict[str, list] = {"baseline": [], "candidate": []}
    for name, own in inputs.sets.items():
        shape, stop = own.passages.shape, start + own.passages.size
        before, after = (side[start:stop].reshape(shape) for side in outputs)
        groups += _items(name, own.collection, before, after)
        rows += common.of_domain(ranking.metrics(before, after, own.collection.documents), name)
        pictures["baseline"] += before.tolist()
        pictures["candidate"] += after.tolist()
        start = stop
    common.write_items(comparison.folder, groups)
    return rows, {"scores": pictures}


def _items(name: str, collection: datasets.Retrieval, before: ndarray, after: ndarray) -> list:
    """Groups of items.parquet."""
    old, new = (1 / fidelity.ranks(scores, scores[:, :1]) for scores in (before, after))
    gained = [ranking.ndcg_10(1 / reciprocal) for reciprocal in (old, new)]
    owners, ones = collection.documents, np.ones(len(old))
    queries = {"document": owners, "text": collection.queries, "domain": name}
    same, first = before.argmax(1) == after.argmax(1), ranking.first_kept(before, after)
    order = ranking.kendall(before, after)
    query, position = (index.ravel() for index in np.indices(before.shape))
    pairs = {"document": owners[query], "left": query, "right": position, "domain": name}
    return [
        group("shortlist", candidate=new, baseline=old, **queries),
        group("ndcg_10", candidate=gained[1], baseline=gained[0], **queries),
        group("same_first", candidate=same, baseline=ones, **queries),
        group("first_3", candidate=first, baseline=ones, **queries),
        group("order", candidate=order, baseline=ones, **queries),
        group("score", candidate=after.ravel(), baseline=before.ravel(), **pairs),
    ]


def glance(before: Any, after: Any, source: corpora.Texts) -> dict[str, float]:
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


def first_stage_scores(own: Shortlists) -> ndarray:
    """Scores (queries, SHORTLIST) by the encoder itself: the baseline that a reranker has to beat."""
    texts = own.collection.queries, own.collection.passages
    scores = _cosines(registry.open_model(FIRST_STAGE), *texts)
    return np.take_along_axis(scores, own.passages, 1).astype(float)


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
        label = f"{label} on {loss['domain']}"
        lines.append(f"{label} {fidelity.direction(loss)}: {change}.")
    same, score = values["same_first"], values["score_spearman"]
    flips = f"{same['lost']} right ones lost, {same['gained']} gained (McNemar p = {same['mcnemar_p']:.3f})"
    first = f"The same passage comes first for {same['value']:.1%} of {same['n']} queries: {flips}."
    return "\n".join([*lines, f"{first} Spearman of the scores {fidelity.formatted(score)}."])
