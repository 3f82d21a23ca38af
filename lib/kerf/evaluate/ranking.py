"""Shortlists of two rerankers: scores (queries, passages), with the right passage in column 0."""

import numpy as np
from numpy import ndarray

from kerf.evaluate import fidelity
from kerf.evaluate import stats as st


def metrics(before: ndarray, after: ndarray, documents: ndarray) -> list[fidelity.Row]:
    """Metric rows of both models' scores (queries, passages); documents: (queries,)."""
    old, new = (fidelity.ranks(scores, scores[:, :1]) for scores in (before, after))
    mean, first = fidelity.mean, (old == 1, new == 1)
    change = st.Documents(documents).means(((after - before) ** 2).mean(1)).map(np.sqrt)
    same_first = (before.argmax(1) == after.argmax(1)).astype(float)
    queries = np.repeat(np.arange(len(before)), before.shape[1])
    pairs = st.Documents(documents, fidelity.RANK_REPLICATES)
    agreement = pairs.spearman(before.ravel(), after.ravel(), queries, queries)
    itself = 1.0 if np.ptp(before) else None  # a constant correlates with nothing
    return [
        *fidelity.mean_and_loss("ndcg_10", ndcg_10(old), ndcg_10(new), documents),
        *fidelity.mean_and_loss("mrr", np.reciprocal(old), np.reciprocal(new), documents),
        mean("first_right", first[1].astype(float), documents, float(first[0].mean())),
        mean("top_3_kept", first_kept(before, after), documents, 1.0),
        mean("order_kendall", kendall(before, after), documents, 1.0),
        fidelity.drawn("score_change_rms", change, 0.0, before.size),
        mean("same_first", same_first, documents, 1.0) | fidelity.flips(*first),
        fidelity.drawn("score_spearman", agreement, itself, before.size),
    ]


def ndcg_10(ranks: ndarray) -> ndarray:
    """nDCG@10 of one right passage at each of these ranks (Jarvelin and Kekalainen 2002)."""
    return np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)


def first_kept(before: ndarray, after: ndarray) -> ndarray:
    """Share (queries,) of the first three of a shortlist that are the same for both models."""
    first = [np.argsort(-scores, axis=1, kind="stable")[:, :3] for scores in (before, after)]
    return (first[0][:, :, None] == first[1][:, None]).any(2).mean(1)


def kendall(before: ndarray, after: ndarray) -> ndarray:
    """Kendall's tau-a (queries,): concordant less discordant pairs, over all pairs."""
    left, right = np.triu_indices(before.shape[1], 1)
    old, new = (np.sign(scores[:, left] - scores[:, right]) for scores in (before, after))
    return (old * new).mean(1)
