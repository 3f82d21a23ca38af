"""Intervals, all at 95 %: what the data can tell and what it cannot.

Sentences of one document resemble each other, so resampling draws whole documents. Candidate and
baseline are always measured on the same items and resampled together (paired). Intervals are BCa:
bias-corrected and accelerated (Efron 1987), with tails widened for few documents. Percentiles carry
order-statistic bounds, yes/no items McNemar's exact test.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
REPLICATES = 2000
TAIL = (1 - LEVEL) / 2
LEAST_DOCUMENTS = 12  # fewest with an interval: below, it covers the mean of skewed values in less than 93 of 100 samples


@dataclass(frozen=True)
class Draws:
    """A statistic of all items, in every bootstrap replicate (replicates,), and with each document left out (documents,)."""

    value: float
    replicates: np.ndarray
    left_out: np.ndarray

    def map(self, function: Callable) -> "Draws":
        """A function of the statistic."""
        return Draws(
            float(function(self.value)), function(self.replicates), function(self.left_out)
        )

    def __sub__(self, other: "Draws") -> "Draws":
        """The difference of two statistics of the same documents: paired, draw by draw."""
        return Draws(
            self.value - other.value,
            self.replicates - other.replicates,
            self.left_out - other.left_out,
        )

    def interval(self) -> tuple[float | None, float | None]:
        """BCa bounds, the value always between them; None, None with too few documents, or where most draws are undefined."""
        n, kept = len(self.left_out), self.replicates[np.isfinite(self.replicates)]
        if (
            n < LEAST_DOCUMENTS
            or not math.isfinite(self.value)
            or 2 * len(kept) < len(self.replicates)
        ):
            return None, None
        apart = kept - self.value
        tied = (
            np.abs(apart) <= 1e-6 * np.abs(apart).max()
        )  # rounding of the same sum in another order
        below = ((apart < 0) & ~tied).mean() + tied.mean() / 2
        bias = stats.norm.ppf(np.clip(below, 1 / len(kept), 1 - 1 / len(kept)))
        moved = np.nan_to_num(self.left_out.mean() - self.left_out)
        size = (moved**2).sum() ** 1.5
        acceleration = (moved**3).sum() / (6 * size) if size else 0.0
        # The bootstrap's variance is (n - 1) / n of the sample's, and normal tails are thinner than Student's.
        z = bias + np.array([-1, 1]) * stats.t.ppf(1 - TAIL, n - 1) * math.sqrt(n / (n - 1))
        low, high = np.quantile(
            kept, stats.norm.cdf(bias + z / np.maximum(1 - acceleration * z, 1e-3))
        )
        return min(float(low), self.value), max(float(high), self.value)


def average(parts: list[Draws]) -> Draws:
    """The mean of statistics of independent samples."""
    moved = [(part.left_out - part.left_out.mean()) / len(parts) for part in parts]
    value = float(np.mean([part.value for part in parts]))
    return Draws(
        value, np.mean([part.replicates for part in parts], 0), value + np.concatenate(moved)
    )


class Documents:
    """Resampling of whole documents: sums and counts of each are weighted together.

    The rows of `weights` (1 + replicates + documents, documents) are all of them, those drawn, and all but one.
    """

    def __init__(self, documents: np.ndarray, replicates: int = REPLICATES, seed: int = 0) -> None:
        """documents: (items,) number of the document of each item."""
        _, self.member = np.unique(documents, return_inverse=True)
        count = int(self.member.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(
            count, np.full(count, 1 / count), size=replicates
        )
        self.weights = np.concatenate([np.ones((1, count)), drawn, 1 - np.eye(count)])
        self.replicates = replicates

    def draws(self, found: np.ndarray) -> Draws:
        """A statistic that was computed under every row of weights."""
        return Draws(float(found[0]), found[1 : 1 + self.replicates], found[1 + self.replicates :])

    def means(self, values: np.ndarray) -> Draws:
        """Mean of values (items,)."""
        return self.draws(self._means(values))

    def _means(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(
            invalid="ignore", divide="ignore"
        ):  # without its only document nothing is left
            return (
                self.weights
                @ np.bincount(self.member, values)
                / (self.weights @ np.bincount(self.member))
            )

    def quantiles(self, values: np.ndarray, q: float) -> Draws:
        """q-quantile of values (items,). It is not smooth, so leaving out documents says nothing of its skew."""
        rows = self.weights[: 1 + self.replicates]
        pieces = [
            weighted_quantiles(values, q, rows[start : start + 100][:, self.member])
            for start in range(0, len(rows), 100)
        ]
        found = np.concatenate(pieces)
        return self.draws(np.concatenate([found, np.full(self.weights.shape[1], found[0])]))

    def correlations(self, x: np.ndarray, y: np.ndarray) -> Draws:
        """Pearson's correlation of x and y (items,)."""
        return self.draws(_correlation(*map(self._means, (x, y, x * x, y * y, x * y))))

    def spearman(
        self, x: np.ndarray, y: np.ndarray, left: np.ndarray, right: np.ndarray | None = None
    ) -> Draws:
        """Spearman's rho of x and y (pairs,); left, right: the items that a pair is made of (only left: of one item).

        A pair weighs as much as its items together, and one of a document that was drawn twice counts in each of its copies, not
        between them: a text beside itself, which the sample does not have, would move rho up. Ranks are those of the whole
        sample in every draw: ranking each anew would tie the pairs of what repeats, which moves rho of nearly equal models down.
        """
        a, b = (standard_ranks(each) for each in (x, y))
        columns = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], 1)
        first = self.member[left]
        second = first if right is None else self.member[right]
        sums = []
        for row in self.weights:
            weights = row[first] * np.where(first == second, 1, row[second])
            sums.append(weights @ columns)
        with np.errstate(invalid="ignore", divide="ignore"):
            total, *means = np.array(sums).T
            return self.draws(_correlation(*(each / total for each in means)))


def _correlation(mx, my, xx, yy, xy) -> np.ndarray:
    """Pearson's correlation from means; NaN where one side is constant."""
    spread = [square - mean * mean for square, mean in ((xx, mx), (yy, my))]
    with np.errstate(invalid="ignore", divide="ignore"):
        varied = (spread[0] > 1e-12 * xx) & (spread[1] > 1e-12 * yy)  # what is less is rounding
        return np.where(varied, (xy - mx * my) / np.sqrt(spread[0] * spread[1]), np.nan)


def standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, ties in the middle, with mean 0 and variance 1; zeros for a constant."""
    ranks = stats.rankdata(values)
    ranks -= ranks.mean()
    return ranks / (ranks.std() or 1.0)


def mean_interval(
    values: np.ndarray, documents: np.ndarray
) -> tuple[float, float | None, float | None]:
    """Mean of `values` (items,) and its interval over documents (None, None: too few of them)."""
    drawn = Documents(documents).means(values)
    return drawn.value, *drawn.interval()


def percentile_interval(values: np.ndarray, q: float) -> tuple[float, float | None, float | None]:
    """The q-quantile and its order-statistic bounds; a bound is None where there are too few values for it.

    The number of values below the quantile is binomial(n, q), whatever their distribution (David and
    Nagaraja, Order Statistics, section 7.1).
    """
    ordered, n = np.sort(values), len(values)
    below = int(
        stats.binom.ppf(TAIL, n, q)
    )  # smallest k with P(B <= k) >= tail, so P(B < k) < tail
    above = int(stats.binom.ppf(1 - TAIL, n, q)) + 1
    low = float(ordered[below - 1]) if below >= 1 else None
    high = float(ordered[above - 1]) if above <= n else None
    return float(np.quantile(values, q)), low, high


def items_for_percentile(q: float) -> int:
    """Least number of values with a lower bound for the q-quantile (q below one half)."""
    return math.ceil(math.log(TAIL) / math.log1p(-q))


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
