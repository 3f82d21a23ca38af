"""Intervals, all at 95 %: what the data can tell and what it cannot.

Sentences of one document resemble each other, so resampling draws whole documents. Candidate and
baseline are always measured on the same items and resampled together (paired). Percentiles carry
order-statistic bounds, yes/no items McNemar's exact test.
"""

import math

import numpy as np
from scipy import stats

LEVEL = 0.95
REPLICATES = 2000
TAIL = (1 - LEVEL) / 2


def document_weights(documents: np.ndarray, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """Bootstrap weights (replicates, items): how often each item's document was drawn.

    documents: (items,) number of the document of each item.
    """
    _, member = np.unique(documents, return_inverse=True)
    count = int(member.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=replicates)
    return draws[:, member]


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap replicates; replicates that are NaN (a degenerate draw) do not count."""
    low, high = np.nanquantile(replicates, [TAIL, 1 - TAIL])
    return float(low), float(high)


def mean_interval(values: np.ndarray, documents: np.ndarray) -> tuple[float, float, float]:
    """Mean of `values` (items,) and its interval over documents."""
    weights = document_weights(documents)
    totals = weights.sum(1)
    return float(values.mean()), *interval((weights @ values) / totals)


def percentile_interval(values: np.ndarray, q: float) -> tuple[float, float | None, float | None]:
    """The q-quantile and its order-statistic bounds; a bound is None where there are too few values for it.

    The number of values below the quantile is binomial(n, q), whatever their distribution (David and
    Nagaraja, Order Statistics, section 7.1).
    """
    ordered, n = np.sort(values), len(values)
    below = int(stats.binom.ppf(TAIL, n, q))  # smallest k with P(B <= k) >= tail, so P(B < k) < tail
    above = int(stats.binom.ppf(1 - TAIL, n, q)) + 1
    low = float(ordered[below - 1]) if below >= 1 else None
    high = float(ordered[above - 1]) if above <= n else None
    return float(np.quantile(values, q)), low, high


def items_for_percentile(q: float) -> int:
    """Least number of values with a lower bound for the q-quantile (q below one half)."""
    return math.ceil(math.log(TAIL) / math.log1p(-q))


def weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Spearman's rho of integer-weighted pairs: as if each pair stood there `weight` times.

    x, y: dense ranks (0 .. number of distinct values - 1, ties equal).
    """
    total = weights.sum()
    if total == 0:
        return math.nan
    ranks = []
    for dense in (x, y):
        count = np.bincount(dense, weights)
        middle = np.cumsum(count) - (count + 1) / 2
        ranks.append(middle[dense])
    a, b = (rank - (weights @ rank) / total for rank in ranks)
    scale = math.sqrt((weights @ (a * a)) * (weights @ (b * b)))
    return float(weights @ (a * b) / scale) if scale else math.nan


def dense_rank(values: np.ndarray) -> np.ndarray:
    """Number of distinct smaller values, for each value."""
    return np.unique(values, return_inverse=True)[1]


def pair_weights(node_weights: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Weight of each pair when its two texts were drawn so often: the product."""
    return node_weights[left] * node_weights[right]


def spearman_draws(x: np.ndarray, y: np.ndarray, left: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's rho of pairs of texts in every replicate, (replicates,).

    x, y: dense ranks (pairs,); left, right: the texts of each pair; weights: (replicates, texts).
    """
    return np.array([weighted_spearman(x, y, pair_weights(drawn, left, right)) for drawn in weights])


def mcnemar(before: np.ndarray, after: np.ndarray) -> tuple[int, int, float]:
    """Items lost (right before, wrong after), gained, and the exact two-sided p-value of McNemar's test."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    if lost + gained == 0:
        return 0, 0, 1.0
    return lost, gained, float(stats.binomtest(lost, lost + gained, 0.5).pvalue)


def median_interval(values: np.ndarray) -> tuple[float, float | None, float | None]:
    """Median and its order-statistic bounds (None below six values)."""
    return percentile_interval(values, 0.5)


def weighted_quantiles(values: np.ndarray, q: float, weights: np.ndarray) -> np.ndarray:
    """The q-quantile of values (items,) under each row of weights (replicates, items): the first value whose
    cumulative weight reaches q of the total."""
    order = np.argsort(values)
    reached = np.cumsum(weights[:, order], 1, dtype=np.float64)
    places = (reached < q * reached[:, -1:]).sum(1)
    return values[order][np.minimum(places, len(values) - 1)]
