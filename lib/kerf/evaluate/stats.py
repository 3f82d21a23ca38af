"""Confidence intervals at 95 %, from resampling whole documents.

Sentences of one document are correlated, so every bootstrap replicate draws whole documents, the same for candidate and
baseline (paired). Intervals are BCa: bias-corrected and accelerated (Efron 1987), with tails widened for few documents.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy import stats

LEVEL, REPLICATES = 0.95, 2000
TAIL = (1 - LEVEL) / 2
LEAST_DOCUMENTS = 12  # with fewer, intervals of skewed values cover the mean in less than 93 %

Interval = tuple[float | None, float | None]
Estimate = tuple[float, float | None, float | None]  # value, low, high


@dataclass(frozen=True)
class Draws:
    """Statistic of the sample, replicates (replicates,) and all documents but one (documents,)."""

    value: float
    replicates: ndarray
    jackknife: ndarray

    def map(self, function: Callable) -> "Draws":
        """A function of the statistic."""
        value, *arrays = map(function, vars(self).values())
        return Draws(float(value), *arrays)

    def __sub__(self, other: "Draws") -> "Draws":
        """The paired difference of two statistics of the same documents."""
        return Draws(*map(operator.sub, vars(self).values(), vars(other).values()))

    def __truediv__(self, other: "Draws") -> "Draws":
        """The paired ratio of two statistics of the same documents."""
        with np.errstate(divide="ignore", invalid="ignore"):
            pairs = zip(vars(self).values(), vars(other).values(), strict=True)
            value, *arrays = (np.divide(a, b) for a, b in pairs)
        return Draws(float(value), *arrays)

    def interval(self, tail: float = TAIL) -> Interval:
        """BCa bounds around the value, with `tail` outside on each side; None, None with too few documents or defined replicates."""
        n, finite = len(self.jackknife), self.replicates[np.isfinite(self.replicates)]
        mostly_undefined = 2 * len(finite) < len(self.replicates)
        if n < LEAST_DOCUMENTS or not math.isfinite(self.value) or mostly_undefined:
            return None, None
        deviations = finite - self.value
        # Deviations this small are rounding of the same sum in another order.
        tied = np.abs(deviations) <= 1e-6 * np.abs(deviations).max()
        below = ((deviations < 0) & ~tied).mean() + tied.mean() / 2
        bias = stats.norm.ppf(np.clip(below, 1 / len(finite), 1 - 1 / len(finite)))
        influence = np.nan_to_num(self.jackknife.mean() - self.jackknife)
        scale = (influence**2).sum() ** 1.5
        acceleration = (influence**3).sum() / (6 * scale) if scale else 0.0
        # The bootstrap's variance is (n - 1) / n of the sample's, and normal tails are too thin.
        z = bias + np.array([-1, 1]) * stats.t.ppf(1 - tail, n - 1) * math.sqrt(n / (n - 1))
        levels = stats.norm.cdf(bias + z / np.maximum(1 - acceleration * z, 1e-3))
        low, high = np.quantile(finite, levels)
        return min(float(low), self.value), max(float(high), self.value)


def average(parts: list[Draws]) -> Draws:
    """The mean of statistics of independent samples."""
    moved = [(part.jackknife - part.jackknife.mean()) / len(parts) for part in parts]
    value = float(np.mean([part.value for part in parts]))
    replicates = np.mean([part.replicates for part in parts], 0)
    return Draws(value, replicates, value + np.concatenate(moved))


class Documents:
    """Resampling of whole documents; documents: (items,) number of the document of each item.

    Rows of `weights` (1 + replicates + documents, documents): all documents, how often a replicate drew each of them, and
    all documents but one (jackknife).
    """

    def __init__(self, documents: ndarray, replicates: int = REPLICATES, seed: int = 0) -> None:
        _, self.member = np.unique(documents, return_inverse=True)
        count = int(self.member.max()) + 1
        generator = np.random.default_rng(seed)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=replicates)
        self.weights = np.concatenate([np.ones((1, count)), drawn, 1 - np.eye(count)])
        self.replicates = replicates

    def draws(self, statistic: ndarray) -> Draws:
        """A statistic that was computed under every row of weights."""
        _, replicates, jackknife = np.split(statistic, [1, 1 + self.replicates])
        return Draws(float(statistic[0]), replicates, jackknife)

    def means(self, values: ndarray) -> Draws:
        """Mean of values (items,)."""
        return self.draws(self._means(values))

    def _means(self, values: ndarray) -> ndarray:
        sums, counts = np.bincount(self.member, values), np.bincount(self.member)
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 without the only document
            return self.weights @ sums / (self.weights @ counts)

    def quantiles(self, values: ndarray, q: float) -> Draws:
        """q-quantile of values (items,); it is not smooth, so its jackknife is a constant."""
        rows = self.weights[: 1 + self.replicates]
        pieces = [
            weighted_quantiles(values, q, rows[start : start + 100][:, self.member])
            for start in range(0, len(rows), 100)
        ]
        jackknife = np.full(self.weights.shape[1], pieces[0][0])
        return self.draws(np.concatenate([*pieces, jackknife]))

    def correlations(self, x: ndarray, y: ndarray) -> Draws:
        """Pearson's correlation of x and y (items,)."""
        return self.draws(_correlation(*map(self._means, (x, y, x * x, y * y, x * y))))

    def spearman(self, x: ndarray, y: ndarray, left: ndarray, right: ndarray) -> Draws:
        """Spearman's rho of x, y (pairs,); left, right: items of the pairs, which may be the same.

        A pair weighs the product of its documents' weights; within a document, pairs between its copies do not count, since a
        text paired with itself would bias rho upward. Ranks are of the whole sample: new ranks would tie repeated pairs.
        """
        a, b = standard_ranks(x), standard_ranks(y)
        columns = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], 1)
        first, second = self.member[left], self.member[right]
        within = first == second
        sums = [(row[first] * np.where(within, 1, row[second])) @ columns for row in self.weights]
        with np.errstate(invalid="ignore", divide="ignore"):
            total, *moments = np.array(sums).T
            return self.draws(_correlation(*(moment / total for moment in moments)))


def _correlation(*means: ndarray) -> ndarray:
    """Pearson's correlation from the means of x, y, x², y² and xy; NaN for a constant x or y."""
    mx, my, xx, yy, xy = means
    x_variance, y_variance = xx - mx * mx, yy - my * my
    with np.errstate(invalid="ignore", divide="ignore"):
        varies = (x_variance > 1e-12 * xx) & (y_variance > 1e-12 * yy)  # less is rounding
        return np.where(varies, (xy - mx * my) / np.sqrt(x_variance * y_variance), np.nan)


def standard_ranks(values: ndarray) -> ndarray:
    """Ranks with mean 0 and variance 1, ties at their mean rank; zeros for a constant."""
    ranks = stats.rankdata(values)
    ranks -= ranks.mean()
    return ranks / (ranks.std() or 1.0)


def mean_interval(values: ndarray, documents: ndarray) -> Estimate:
    """Mean of values (items,) and its interval over documents (items,)."""
    draws = Documents(documents).means(values)
    return draws.value, *draws.interval()


def percentile_interval(values: ndarray, q: float) -> Estimate:
    """q-quantile and bounds (David and Nagaraja, Order Statistics, 7.1), None with few values."""
    ordered, n = np.sort(values), len(values)
    # The number of values below the quantile is binomial(n, q), whatever their distribution;
    # ppf is the smallest k with P(B <= k) >= tail, so P(B < k) < tail.
    below, above = (int(stats.binom.ppf(tail, n, q)) for tail in (TAIL, 1 - TAIL))
    low = float(ordered[below - 1]) if below >= 1 else None
    high = float(ordered[above]) if above < n else None
    return float(np.quantile(values, q)), low, high


def median_interval(values: ndarray) -> Estimate:
    """Median and its order-statistic bounds (None below six values)."""
    return percentile_interval(values, 0.5)


def items_for_percentile(q: float) -> int:
    """Least number of values with a lower bound for the q-quantile (q below one half)."""
    return math.ceil(math.log(TAIL) / math.log1p(-q))


def mcnemar(before: ndarray, after: ndarray) -> tuple[int, int, float]:
    """Items lost (right before, wrong after), items gained, and McNemar's exact two-sided p."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    p = float(stats.binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0
    return lost, gained, p


def weighted_quantiles(values: ndarray, q: float, weights: ndarray) -> ndarray:
    """q-quantile of values (items,) under every row of weights (replicates, items)."""
    order = np.argsort(values)
    reached = np.cumsum(weights[:, order], 1, dtype=np.float64)
    places = (reached < q * reached[:, -1:]).sum(1)
    return values[order][np.minimum(places, len(values) - 1)]
