"""Fidelity of an encoder: candidate against baseline, on the same texts.

Each function takes embeddings (items, features) with rows of length one and returns metric rows:
name, value, low, high, baseline, n. See `kerf.metrics` for what the names mean.
"""

import numpy as np

from kerf import statistics as st

RANK_REPLICATES = 300  # of statistics that rank 80,000 pairs; their intervals are of four digits anyway


def row(name: str, value: float, low: float | None, high: float | None, baseline: float | None, n: int) -> dict:
    """One metric of one candidate."""
    return {"name": name, "value": value, "low": low, "high": high, "baseline": baseline, "n": n}


def cosines(base: np.ndarray, candidate: np.ndarray, documents: np.ndarray, wiki=None) -> list[dict]:
    """Mean, 1st percentile and minimum; `wiki`: (base, candidate, documents) of the other domain."""
    values = (base * candidate).sum(1)
    n = len(values)
    rows = [
        row("cosine_mean", *st.mean_interval(values, documents), 1.0, n),
        row("cosine_p01", *st.percentile_interval(values, 0.01), 1.0, n),
        row("cosine_min", float(values.min()), None, None, 1.0, n),
    ]
    if wiki:
        other = (wiki[0] * wiki[1]).sum(1)
        rows.append(row("cosine_mean_wiki", *st.mean_interval(other, wiki[2]), 1.0, len(other)))
    return rows


def similarities(base: np.ndarray, candidate: np.ndarray, documents: np.ndarray) -> list[dict]:
    """Spearman correlation of pairwise similarities, and overlap of the nearest ten.

    Pairs of sentences of one document that is drawn twice stay pairs of that document: the weight of a
    pair is the product of its sentences' weights.
    """
    left, right = np.triu_indices(len(base), 1)
    x, y = (st.dense_rank((e @ e.T)[left, right]) for e in (base, candidate))
    draws = st.spearman_draws(x, y, left, right, st.document_weights(documents, RANK_REPLICATES))
    value = st.weighted_spearman(x, y, np.ones(len(left), int))
    return [
        row("similarity_spearman", value, *st.interval(draws), 1.0, len(base)),
        row("neighbours_10", *st.mean_interval(overlap(base, candidate), documents), 1.0, len(base)),
    ]


def overlap(base: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Share of each text's nearest ten that both models agree on, (items,)."""
    nearest, k = [], min(10, len(base) - 1)
    for matrix in (e @ e.T for e in (base, candidate)):
        apart = matrix - 2 * np.eye(len(matrix), dtype=matrix.dtype)
        nearest.append(np.argpartition(-apart, k - 1, axis=1)[:, :k])
    return np.array([len(set(a) & set(b)) / k for a, b in zip(*nearest, strict=True)])


def retrieval(base: tuple, candidate: tuple, documents: np.ndarray) -> tuple[list[dict], np.ndarray]:
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
    n = len(before)
    recall = row("retrieval_recall_1", *st.mean_interval(first[1].astype(float), documents), float(first[0].mean()), n)
    rows = [
        row("retrieval_mrr", *st.mean_interval(after, documents), float(before.mean()), n),
        row("retrieval_mrr_loss", *st.mean_interval(before - after, documents), 0.0, n),
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
    values, draws = {}, {}
    for name, (left, right, scores) in sets.items():
        truth = st.dense_rank(np.array(scores))
        count = len(base[name])
        weights = st.document_weights(np.arange(count), st.REPLICATES // 2)
        columns = []
        for embeddings in (base[name], candidate[name]):
            similarity = st.dense_rank((embeddings[left] * embeddings[right]).sum(1))
            whole = st.weighted_spearman(truth, similarity, np.ones(len(truth), int))
            columns.append((whole, st.spearman_draws(truth, similarity, left, right, weights)))
        values[name] = [whole for whole, _ in columns]
        draws[name] = [drawn for _, drawn in columns]
    n = sum(len(scores) for _, _, scores in sets.values())
    mean = np.mean(list(values.values()), 0)
    base_draws, draws_after = (np.mean([pair[side] for pair in draws.values()], 0) for side in (0, 1))
    each = [
        row(f"human_spearman_{name}", values[name][1], *st.interval(draws[name][1]), values[name][0], len(scores))
        for name, (_, _, scores) in sets.items()
    ]
    return [
        row("human_spearman", float(mean[1]), *st.interval(draws_after), float(mean[0]), n),
        row("human_spearman_loss", float(mean[0] - mean[1]), *st.interval(base_draws - draws_after), 0.0, n),
        *each,
    ]
