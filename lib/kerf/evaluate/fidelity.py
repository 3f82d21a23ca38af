"""Fidelity of an encoder, as metric rows: name, value, low, high, baseline, n; why and needed_n without interval.

Embeddings are (items, features), rows of length one.
"""

import math
from typing import Any

import numpy as np
from numpy import ndarray

from kerf.evaluate import stats as st

RANK_REPLICATES = 600  # of statistics over 80,000 pairs
UNDEFINED = "undefined for these scores: all are the same, or too large for a number"

Row = dict[str, Any]
Bound = float | None


def row(name: str, value: float, low: Bound, high: Bound, baseline: Bound, n: int) -> Row:
    """One metric of one candidate. A value or baseline that is not finite becomes None."""
    baseline = baseline if baseline is not None and math.isfinite(baseline) else None
    fields = {"name": name, "value": value, "low": low, "high": high, "baseline": baseline, "n": n}
    if math.isfinite(value):
        return fields
    return fields | {"value": None, "low": None, "high": None, "why": UNDEFINED, "needed_n": None}


def drawn(name: str, draws: st.Draws, baseline: float | None, n: int) -> Row:
    """The row of a resampled metric of n items."""
    low, high = draws.interval()
    metric = row(name, draws.value, low, high, baseline, n)
    has_reason = low is not None or "why" in metric
    return metric if has_reason else metric | without_interval(len(draws.jackknife), n)


def without_interval(documents: int, n: int) -> Row:
    """Why n items of so many documents have no interval, and how many items would have one."""
    least = st.LEAST_DOCUMENTS
    if documents >= least:
        return {"why": "undefined in most draws of documents", "needed_n": None}
    few = f"too few independent documents for an interval: {documents}, at least {least} are needed"
    return {"why": few, "needed_n": math.ceil(n * least / documents)}


def formatted(metric: Row, sign: int = 1, plus: bool = False) -> str:
    """A row's value with its interval, or why it has none. sign: -1 turns a loss into a change."""

    def shown(number: float | None) -> str:
        return "undefined" if number is None else f"{sign * number:{'+' * plus}.4f}"

    ends = (metric["low"], metric["high"])[::sign]
    if None in ends:
        return f"{shown(metric['value'])} ({metric.get('why', 'no interval')})"
    return f"{shown(metric['value'])} ({shown(ends[0])} to {shown(ends[1])})"


def direction(loss: Row) -> str:
    """How the quality moved whose loss is the row, as a verb."""
    if loss["low"] is None or loss["high"] is None:
        return "cannot be judged"
    if loss["low"] <= 0 <= loss["high"]:
        return "did not change by more than chance explains"
    return "fell" if loss["low"] > 0 else "rose"


def mean(name: str, values: ndarray, documents: ndarray, baseline: float | None) -> Row:
    """The row of a mean over items (items,)."""
    return drawn(name, st.Documents(documents).means(values), baseline, len(values))


def mean_and_loss(name: str, before: ndarray, after: ndarray, documents: ndarray) -> list[Row]:
    """The rows of a mean over items and of its paired loss. before, after: (items,)."""
    loss = mean(f"{name}_loss", before - after, documents, 0.0)
    return [mean(name, after, documents, float(before.mean())), loss]


def flips(before: ndarray, after: ndarray) -> Row:
    """How many right items (items,) were lost and gained, and McNemar's p."""
    return dict(zip(("lost", "gained", "mcnemar_p"), st.mcnemar(before, after), strict=True))


def cosines(base: ndarray, candidate: ndarray, documents: ndarray) -> list[Row]:
    """Mean, 1st percentile, minimum."""
    values = (base * candidate).sum(1)
    return [
        mean("cosine_mean", values, documents, 1.0),
        _percentile("cosine_p01", values, 0.01, documents),
        row("cosine_min", float(values.min()), None, None, 1.0, len(values)),
    ]


def _percentile(name: str, values: ndarray, q: float, documents: ndarray) -> Row:
    """The row of a percentile with order-statistic bounds, none with too few documents."""
    n, count = len(values), len(np.unique(documents))
    value, low, high = st.percentile_interval(values, q)
    if count < st.LEAST_DOCUMENTS:
        problem = without_interval(count, n)
    elif low is None and high is None:
        problem = {"why": "too few items for bounds of a percentile", "needed_n": 0}
    else:
        return row(name, value, low, high, 1.0, n)
    needed = max(st.items_for_percentile(q), problem["needed_n"])
    return row(name, value, None, None, 1.0, n) | problem | {"needed_n": needed}


def similarities(base: ndarray, candidate: ndarray, documents: ndarray) -> list[Row]:
    """Spearman correlation of pairwise similarities, and overlap of the nearest ten."""
    left, right = np.triu_indices(len(base), 1)
    x, y = ((rows @ rows.T)[left, right] for rows in (base, candidate))
    draws = st.Documents(documents, RANK_REPLICATES).spearman(x, y, left, right)
    itself = 1.0 if np.ptp(x) else None  # a constant correlates with nothing
    same = mean("neighbours_10", overlap(base, candidate), documents, 1.0)
    return [drawn("similarity_spearman", draws, itself, len(base)), same]


def overlap(base: ndarray, candidate: ndarray) -> ndarray:
    """Share (items,) of each text's ten nearest neighbours that are the same for both models."""
    nearest, k = [], min(10, len(base) - 1)
    for matrix in (rows @ rows.T for rows in (base, candidate)):
        without_self = matrix - 2 * np.eye(len(matrix), dtype=matrix.dtype)
        nearest.append(np.argpartition(-without_self, k - 1, axis=1)[:, :k])
    return np.array([len(set(a) & set(b)) / k for a, b in zip(*nearest, strict=True)])


def ranks(scores: ndarray, own: ndarray) -> ndarray:
    """Rank (queries,) of a query's own passage. scores: (queries, passages), own: (queries, 1)."""
    # A tie counts half: an embedding that maps every text to one point must not look perfect.
    return 1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2


def human(sets: dict, base: dict, candidate: dict) -> list[Row]:
    """Agreement with people on `sets` of (left, right, scores) by name, resampled over texts, which are independent."""
    draws, rows = [], []
    for name, (left, right, scores) in sets.items():
        texts = st.Documents(np.arange(len(base[name])), st.REPLICATES // 2)
        cosines = [(own[name][left] * own[name][right]).sum(1) for own in (base, candidate)]
        old, new = (texts.spearman(np.array(scores), own, left, right) for own in cosines)
        draws.append((old, new))
        rows.append(drawn(f"human_spearman_{name}", new, old.value, len(scores)))
    n = sum(row["n"] for row in rows)
    before, after = (st.average(list(side)) for side in zip(*draws, strict=True))
    zero = before.value - before.value  # NaN where the baseline is undefined
    loss = drawn("human_spearman_loss", before - after, zero, n)
    return [drawn("human_spearman", after, before.value, n), loss, *rows]


def rated(
    left: ndarray, right: ndarray, scores: list[float], base: ndarray, candidate: ndarray
) -> list[Row]:
    """Agreement with the scores of pairs of a user's own, and its paired loss. base, candidate: (texts, features)."""
    pairs = st.Documents(joined(left, right))
    sides = [(own[left] * own[right]).sum(1) for own in (base, candidate)]
    old, new = (pairs.spearman(np.array(scores), own, left, right) for own in sides)
    loss = drawn("human_spearman_loss", old - new, old.value - old.value, len(scores))
    return [drawn("human_spearman", new, old.value, len(scores)), loss]


def joined(left: ndarray, right: ndarray) -> ndarray:
    """Unit of resampling of each text (texts,) of pairs: the texts that pairs join, or the text itself where a quarter of all
    texts are joined."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(max(left.max(), right.max())) + 1
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(count, count))
    units = connected_components(graph, directed=False)[1]
    return units if 4 * np.bincount(units).max() <= count else np.arange(count)
