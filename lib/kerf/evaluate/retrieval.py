"""Retrieval: ranks of judged passages, and what a candidate loses when it encodes queries alone or passages too.

Drop-in: the index of the baseline's passages stays, and the candidate encodes queries. Re-index: it encodes both sides.
"""

import numpy as np
from numpy import ndarray

from kerf.evaluate import fidelity
from kerf.evaluate import stats as st

CUT = 10  # passages that a reader looks at
RECALL = 100
Relevant = list[dict[int, float]]  # grade of each judged passage, by query
Scores = dict[str, ndarray]  # (queries,) each, by metric


def scores(similarities: ndarray, relevant: Relevant) -> Scores:
    """nDCG@10 (Jarvelin and Kekalainen 2002; linear gain), reciprocal rank, the same within 10, and recall at 1 and 100 of each query.

    similarities: (queries, passages). A tie counts half: an embedding that maps every text to one point must not look perfect.
    """
    rows = []
    for row, grades in zip(similarities, relevant, strict=True):
        own, gains = row[list(grades)], np.array(list(grades.values()))
        ranks = fidelity.ranks(row[None], own[:, None])
        ideal = np.sort(gains)[::-1][:CUT] / np.log2(2 + np.arange(min(CUT, len(gains))))
        gained = np.where(ranks <= CUT, gains / np.log2(1 + ranks), 0).sum()
        first = ranks.min()
        recall = (ranks <= RECALL).mean()
        cut = 1 / first if first <= CUT else 0.0
        rows.append((gained / ideal.sum(), 1 / first, cut, first == 1, recall))
    names = ("ndcg_10", "retrieval_mrr", "mrr_10", "retrieval_recall_1", "recall_100")
    return dict(zip(names, np.array(rows, float).T, strict=True))


def first_kept(before: ndarray, after: ndarray) -> ndarray:
    """Share (queries,) of the baseline's first ten passages that are among the candidate's. before, after: (queries, passages)."""
    count = min(CUT, before.shape[1])
    nearest = [np.argpartition(-own, count - 1, axis=1)[:, :count] for own in (before, after)]
    return (nearest[0][:, :, None] == nearest[1][:, None]).any(2).mean(1)


def within(relevant: Relevant, passages: int) -> ndarray:
    """Numbers of the queries whose judged passages are all among the first `passages`."""
    return np.array(
        [number for number, grades in enumerate(relevant) if max(grades) < passages], int
    )


def drop_in(
    before: Scores, after: Scores, overlap: ndarray, documents: ndarray
) -> list[fidelity.Row]:
    """Metric rows of a candidate that encodes queries alone; overlap, documents: (queries,)."""
    rows = _with_ratio("ndcg_10", before, after, documents)
    rows = [row | {"name": f"drop_in_{row['name']}"} for row in rows]
    return [*rows, fidelity.mean("drop_in_overlap_10", overlap, documents, 1.0)]


def re_index(before: Scores, after: Scores, documents: ndarray) -> list[fidelity.Row]:
    """Metric rows of a candidate that encodes queries and passages; documents: (queries,)."""
    rows = _with_ratio("ndcg_10", before, after, documents)
    for name in ("retrieval_mrr", "mrr_10", "recall_100"):
        rows += fidelity.mean_and_loss(name, before[name], after[name], documents)
    name = "retrieval_recall_1"
    right = [side[name] == 1 for side in (before, after)]
    first = fidelity.mean(name, after[name], documents, float(before[name].mean()))
    return [*rows, first | fidelity.flips(*right)]


def _with_ratio(name: str, before: Scores, after: Scores, documents: ndarray) -> list[fidelity.Row]:
    old, new = before[name], after[name]
    draws = st.Documents(documents)
    ratio = draws.means(new) / draws.means(old)
    rows = fidelity.mean_and_loss(name, old, new, documents)
    return [*rows, fidelity.drawn(f"{name}_ratio", ratio, 1.0, len(old))]
