"""What changed in the order of shortlists and in their scores, (queries, passages) by both models, the right passage first in each row."""

import numpy as np

from kerf.evaluate import fidelity
from kerf.evaluate import stats as st


def metrics(before: np.ndarray, after: np.ndarray, documents: np.ndarray) -> list[dict]:
    """Metric rows of scores (queries, passages) by both models, the right passage in the first column."""
    rows, mean = [], fidelity.mean
    ranks = [fidelity.ranks(scores, scores[:, :1]) for scores in (before, after)]
    for name, gain in (("ndcg_10", ndcg_10), ("mrr", np.reciprocal)):
        old, new = (gain(rank) for rank in ranks)
        rows.append(mean(name, new, documents, float(old.mean())))
        rows.append(mean(f"{name}_loss", old - new, documents, 0.0))
    lost, gained, p_value = st.mcnemar(*(rank == 1 for rank in ranks))
    right = [(rank == 1).astype(float) for rank in ranks]
    rows.append(mean("first_right", right[1], documents, float(right[0].mean())))
    for name, kept in (("top_3_kept", first_kept), ("order_kendall", kendall)):
        rows.append(mean(name, kept(before, after), documents, 1.0))
    change = st.Documents(documents).means(((after - before) ** 2).mean(1)).map(np.sqrt)
    rows.append(fidelity.drawn("score_change_rms", change, 0.0, before.size))
    same = (before.argmax(1) == after.argmax(1)).astype(float)
    rows.append(
        {
            **mean("same_first", same, documents, 1.0),
            "lost": lost,
            "gained": gained,
            "mcnemar_p": p_value,
        }
    )
    return [*rows, _agreement(before, after, documents)]


def ndcg_10(ranks: np.ndarray) -> np.ndarray:
    """nDCG@10 of queries with one right passage, at these ranks (Jarvelin and Kekalainen 2002)."""
    return np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)


def first_kept(before: np.ndarray, after: np.ndarray, count: int = 3) -> np.ndarray:
    """Share (queries,) of the first `count` of a shortlist that both models agree on."""
    first = [np.argsort(-scores, axis=1, kind="stable")[:, :count] for scores in (before, after)]
    return (first[0][:, :, None] == first[1][:, None]).any(2).mean(1)


def kendall(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Kendall's tau-a (queries,) of each shortlist: pairs in the same order less those in the other, over all pairs."""
    left, right = np.triu_indices(before.shape[1], 1)
    return (
        np.sign(before[:, left] - before[:, right]) * np.sign(after[:, left] - after[:, right])
    ).mean(1)


def _agreement(before: np.ndarray, after: np.ndarray, documents: np.ndarray) -> dict:
    """Spearman correlation of both models' scores of all pairs."""
    query = np.repeat(np.arange(len(before)), before.shape[1])
    found = st.Documents(documents, fidelity.RANK_REPLICATES).spearman(
        before.ravel(), after.ravel(), query
    )
    return fidelity.drawn("score_spearman", found, 1.0 if np.ptp(before) else None, before.size)
