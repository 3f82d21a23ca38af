"""Fidelity of an encoder: candidate against baseline, on the same texts.

Each function takes embeddings (items, features) with rows of length one and returns metric rows:
name, value, low, high, baseline, n. See `kerf.evaluate.metrics` for what the names mean.
"""

import math

import numpy as np

from kerf.evaluate import stats as st

RANK_REPLICATES = 600  # of statistics over 80,000 pairs
UNDEFINED = "undefined for these scores: all are the same, or too large for a number"


def row(
    name: str, value: float, low: float | None, high: float | None, baseline: float | None, n: int
) -> dict:
    """One metric of one candidate. A value or baseline that is no finite number is None, and `why` says so."""
    defined, known = math.isfinite(value), baseline is not None and math.isfinite(baseline)
    found = {
        "name": name,
        "value": value if defined else None,
        "low": low,
        "high": high,
        "baseline": baseline if known else None,
        "n": n,
    }
    return (
        found
        if defined
        else found | {"low": None, "high": None, "why": UNDEFINED, "needed_n": None}
    )


def drawn(name: str, found: st.Draws, baseline: float | None, n: int) -> dict:
    """The row of a resampled metric; without an interval it carries `why` and needed_n, the items that would have one."""
    low, high = found.interval()
    made = row(name, found.value, low, high, baseline, n)
    return (
        made
        if low is not None or "why" in made
        else made | without_interval(len(found.left_out), n)
    )


def without_interval(documents: int, n: int) -> dict:
    """Why n items of so many documents have no interval, and how many would do."""
    if documents >= st.LEAST_DOCUMENTS:
        return {"why": "undefined in most draws of documents", "needed_n": None}
    why = f"too few independent documents for an interval: {documents}, at least {st.LEAST_DOCUMENTS} are needed"
    return {"why": why, "needed_n": math.ceil(n * st.LEAST_DOCUMENTS / documents)}


def formatted(found: dict, sign: int = 1, places: int = 4, plus: bool = False) -> str:
    """The value of a row with its interval, or with why it has none, for a conclusion. sign: -1 turns a loss into a change."""

    def shown(number: float | None) -> str:
        return "undefined" if number is None else f"{sign * number:{'+' * plus}.{places}f}"

    if found["low"] is None or found["high"] is None:
        return f"{shown(found['value'])} ({found.get('why', 'no interval')})"
    low, high = (found["low"], found["high"])[::sign]
    return f"{shown(found['value'])} ({shown(low)} to {shown(high)})"


def direction(loss: dict) -> str:
    """What the row of a loss says of what was lost."""
    if loss["low"] is None or loss["high"] is None:
        return "cannot be judged"
    return (
        "fell"
        if loss["low"] > 0
        else "rose"
        if loss["high"] < 0
        else "did not change by more than chance explains"
    )


def percentile(
    name: str, values: np.ndarray, q: float, documents: np.ndarray, baseline: float
) -> dict:
    """The row of a percentile with order-statistic bounds, none with too few documents."""
    n, count, least = len(values), len(np.unique(documents)), st.items_for_percentile(q)
    value, low, high = st.percentile_interval(values, q)
    if count >= st.LEAST_DOCUMENTS and (low is not None or high is not None):
        return row(name, value, low, high, baseline, n)
    if count >= st.LEAST_DOCUMENTS:
        return row(name, value, None, None, baseline, n) | {
            "why": "too few items for bounds of a percentile",
            "needed_n": least,
        }
    lacking = without_interval(count, n)
    return (
        row(name, value, None, None, baseline, n)
        | lacking
        | {"needed_n": max(least, lacking["needed_n"])}
    )


def cosines(
    base: np.ndarray, candidate: np.ndarray, documents: np.ndarray, wiki=None
) -> list[dict]:
    """Mean, 1st percentile and minimum; `wiki`: (base, candidate, documents) of the other domain."""
    values = (base * candidate).sum(1)
    n = len(values)
    rows = [
        mean("cosine_mean", values, documents, 1.0),
        percentile("cosine_p01", values, 0.01, documents, 1.0),
        row("cosine_min", float(values.min()), None, None, 1.0, n),
    ]
    if wiki:
        other = (wiki[0] * wiki[1]).sum(1)
        rows.append(mean("cosine_mean_wiki", other, wiki[2], 1.0))
    return rows


def mean(name: str, values: np.ndarray, documents: np.ndarray, baseline: float) -> dict:
    """The row of a mean over items (items,)."""
    return drawn(name, st.Documents(documents).means(values), baseline, len(values))


def similarities(base: np.ndarray, candidate: np.ndarray, documents: np.ndarray) -> list[dict]:
    """Spearman correlation of pairwise similarities, and overlap of the nearest ten.

    Pairs of sentences of one document that is drawn twice stay pairs of that document: the weight of a
    pair is the product of its sentences' weights.
    """
    left, right = np.triu_indices(len(base), 1)
    x, y = ((e @ e.T)[left, right] for e in (base, candidate))
    found = st.Documents(documents, RANK_REPLICATES).spearman(x, y, left, right)
    return [
        drawn("similarity_spearman", found, _whole(x), len(base)),
        mean("neighbours_10", overlap(base, candidate), documents, 1.0),
    ]


def _whole(scores: np.ndarray) -> float | None:
    """Spearman's rho of scores with themselves: 1, or None where all are the same."""
    return 1.0 if np.ptp(scores) else None


def overlap(base: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Share of each text's nearest ten that both models agree on, (items,)."""
    nearest, k = [], min(10, len(base) - 1)
    for matrix in (e @ e.T for e in (base, candidate)):
        apart = matrix - 2 * np.eye(len(matrix), dtype=matrix.dtype)
        nearest.append(np.argpartition(-apart, k - 1, axis=1)[:, :k])
    return np.array([len(set(a) & set(b)) / k for a, b in zip(*nearest, strict=True)])


def retrieval(
    base: tuple, candidate: tuple, documents: np.ndarray
) -> tuple[list[dict], np.ndarray]:
    """Inverse cloze: rank of each query's own passage among all. base, candidate: (queries, passages).

    Also returns reciprocal ranks (items, 2), baseline first.
    """
    found = []
    for queries, passages in (base, candidate):
        scores = queries @ passages.T
        found.append(ranks(scores, scores.diagonal()[:, None]))
    before, after = (1 / rank for rank in found)
    first = [rank == 1 for rank in found]
    lost, gained, p_value = st.mcnemar(*first)
    recall = mean("retrieval_recall_1", first[1].astype(float), documents, float(first[0].mean()))
    rows = [
        mean("retrieval_mrr", after, documents, float(before.mean())),
        mean("retrieval_mrr_loss", before - after, documents, 0.0),
        {**recall, "lost": lost, "gained": gained, "mcnemar_p": p_value},
    ]
    return rows, np.stack([before, after], 1)


def ranks(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Rank (queries,) of each query's own passage, 1 the best. scores: (queries, passages), own: (queries, 1) of them."""
    # A tie counts half: an embedding that maps every text to one point must not look perfect.
    return 1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2


def human(sets: dict, base: dict, candidate: dict) -> list[dict]:
    """Agreement with people. sets: name -> (left, right, scores); base, candidate: name -> embeddings.

    Texts (news items, words) are what is independent: they are drawn, and a pair weighs their product.
    """
    found = {}
    for name, (left, right, scores) in sets.items():
        texts = st.Documents(np.arange(len(base[name])), st.REPLICATES // 2)
        rated = (
            (embeddings[left] * embeddings[right]).sum(1)
            for embeddings in (base[name], candidate[name])
        )
        found[name] = [
            texts.spearman(np.array(scores), similarity, left, right) for similarity in rated
        ]
    before, after = (st.average([pair[side] for pair in found.values()]) for side in (0, 1))
    n = sum(len(scores) for _, _, scores in sets.values())
    return [
        drawn("human_spearman", after, before.value, n),
        drawn("human_spearman_loss", before - after, before.value - before.value, n),
        *(
            drawn(f"human_spearman_{name}", own[1], own[0].value, len(sets[name][2]))
            for name, own in found.items()
        ),
    ]
