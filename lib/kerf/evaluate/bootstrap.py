"""The metrics of one candidate in every bootstrap replicate, from its table of items (`kerf.evaluate.per_item_scores`).

The draws depend on the items alone, so replicate i of two candidates has drawn the same documents, and so has left out
the same one: their difference, draw by draw, is a paired one with a BCa interval of its own. Not here: metrics whose items nobody keeps, a peak of memory for one.
"""

from collections.abc import Callable

import numpy as np

from kerf.evaluate import stats as st
from kerf.evaluate.causal_metrics import REPLICATES
from kerf.evaluate.fidelity import RANK_REPLICATES
from kerf.evaluate.ranking import ndcg_10

# Metric: the rows of the table that it is made of, and what of a row counts.
RIGHT: dict[str, tuple[str, Callable]] = {  # yes or no
    "retrieval_recall_1": ("reciprocal_rank", lambda rows: rows.candidate == 1),
    "last_word_accuracy": ("last_word", lambda rows: rows.candidate == 1),
    "same_first": ("same_first", lambda rows: rows.candidate == 1),
    "first_right": ("shortlist", lambda rows: rows.candidate == 1),
    "continuation_exact": ("continuation", lambda rows: rows.candidate == rows.baseline),
}
MEANS: dict[str, tuple[str, Callable]] = RIGHT | {
    "cosine_mean": ("cosine", lambda rows: rows.candidate),
    "cosine_mean_wiki": ("cosine_wiki", lambda rows: rows.candidate),
    "neighbours_10": ("neighbours", lambda rows: rows.candidate),
    "retrieval_mrr": ("reciprocal_rank", lambda rows: rows.candidate),
    "retrieval_mrr_loss": ("reciprocal_rank", lambda rows: rows.baseline - rows.candidate),
    "ndcg_10": ("shortlist", lambda rows: ndcg_10(1 / rows.candidate)),
    "ndcg_10_loss": (
        "shortlist",
        lambda rows: ndcg_10(1 / rows.baseline) - ndcg_10(1 / rows.candidate),
    ),
    "mrr": ("shortlist", lambda rows: rows.candidate),
    "mrr_loss": ("shortlist", lambda rows: rows.baseline - rows.candidate),
    "top_3_kept": ("first_3", lambda rows: rows.candidate),
    "order_kendall": ("order", lambda rows: rows.candidate),
    "score_change_rms": ("score", lambda rows: (rows.candidate - rows.baseline) ** 2),
    "perplexity": ("kl", lambda rows: rows.candidate),
    "perplexity_ratio": ("kl", lambda rows: rows.candidate - rows.baseline),
    "kl_mean": ("kl", lambda rows: rows.kl),
    "same_top": ("kl", lambda rows: rows["same_top"]),
    "probability_change_mean": ("kl", lambda rows: _change(rows)),
    "probability_change_rms": ("kl", lambda rows: _change(rows) ** 2),
    "continuation_prefix": ("continuation", lambda rows: rows.candidate),
}
OF_MEANS = {
    "perplexity": np.exp,
    "perplexity_ratio": np.exp,
    "probability_change_rms": np.sqrt,
    "score_change_rms": np.sqrt,
}
QUANTILES: dict[str, tuple[str, Callable, float]] = {
    "cosine_p01": ("cosine", lambda rows: rows.candidate, 0.01),
    **{
        name: ("kl", lambda rows: rows.kl, q)
        for name, q in (("kl_median", 0.5), ("kl_p90", 0.9), ("kl_p99", 0.99), ("kl_p999", 0.999))
    },
    "probability_change_p05": ("kl", lambda rows: _change(rows), 0.05),
    "probability_change_p95": ("kl", lambda rows: _change(rows), 0.95),
}
HUMAN = ("lee", "wordsim", "simlex")


def _change(rows):
    """Change of the probability of the token that really came."""
    return np.exp(-rows.candidate) - np.exp(-rows.baseline)


class BootstrapMetrics:
    """One candidate's metrics, replicate by replicate."""

    def __init__(self, items) -> None:
        """items: a DataFrame, the rows of items.parquet."""
        floats = items.astype(dict.fromkeys(items.select_dtypes("float32"), float))
        self.tables = {str(name): rows for name, rows in floats.groupby("metric", observed=True)}
        self.draws: dict[str, st.Documents] = {}

    def of(self, metric: str) -> st.Draws | None:
        """The metric, resampled; None where the table does not have its items."""
        try:
            return self._of(metric)
        except KeyError:  # written before these rows, or this column, were kept
            return None

    def _of(self, metric: str) -> st.Draws | None:
        if metric in MEANS:
            table, score = MEANS[metric]
            means = self._documents(table).means(_numbers(score(self.tables[table])))
            return means.map(OF_MEANS[metric]) if metric in OF_MEANS else means
        if metric in QUANTILES:
            table, score, q = QUANTILES[metric]
            return self._documents(table).quantiles(_numbers(score(self.tables[table])), q)
        if metric == "loss_pearson":
            rows = self.tables["kl"]
            return self._documents("kl").correlations(
                _numbers(rows.candidate), _numbers(rows.baseline)
            )
        if metric == "similarity_spearman":
            return self._similarity()
        if metric == "score_spearman":
            return self._scores()
        return self._human(metric) if metric.startswith("human_spearman") else None

    def _documents(self, table: str) -> st.Documents:
        if table not in self.draws:  # language models draw fewer: their quantiles take long
            count = REPLICATES if table in ("kl", "last_word", "continuation") else st.REPLICATES
            self.draws[table] = st.Documents(self.tables[table].document.to_numpy(int), count)
        return self.draws[table]

    def _similarity(self) -> st.Draws:
        return _spearman(
            st.Documents(self.tables["cosine"].document.to_numpy(int), RANK_REPLICATES),
            self.tables["similarity"],
            "baseline",
        )

    def _scores(self) -> st.Draws:
        rows = self.tables["score"]
        drawn = st.Documents(rows.document.to_numpy(int), RANK_REPLICATES)
        return drawn.spearman(
            _numbers(rows.baseline), _numbers(rows.candidate), np.arange(len(rows))
        )

    def _human(self, metric: str) -> st.Draws:
        name = metric.removeprefix("human_spearman").strip("_")
        if name in HUMAN:
            return self._rated(name, "candidate")
        after = st.average([self._rated(each, "candidate") for each in HUMAN])
        return (
            st.average([self._rated(each, "baseline") for each in HUMAN]) - after
            if name == "loss"
            else after
        )

    def _rated(self, name: str, side: str) -> st.Draws:
        rows = self.tables[f"human_{name}"]
        texts = int(max(rows.left.max(), rows.right.max())) + 1
        return _spearman(st.Documents(np.arange(texts), st.REPLICATES // 2), rows, "score", side)


def _spearman(drawn: st.Documents, rows, x: str, y: str = "candidate") -> st.Draws:
    return drawn.spearman(
        _numbers(rows[x]), _numbers(rows[y]), rows.left.to_numpy(int), rows.right.to_numpy(int)
    )


def _numbers(values) -> np.ndarray:
    return np.asarray(values, float)
