"""The metrics of one candidate in every bootstrap replicate, from its table of per-item scores.

The draws depend on the items alone, so replicate i of two candidates draws the same documents: differences are paired.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from kerf.evaluate import stats as st
from kerf.evaluate.causal_metrics import REPLICATES
from kerf.evaluate.fidelity import RANK_REPLICATES
from kerf.evaluate.metrics import METRICS
from kerf.evaluate.ranking import ndcg_10

SCORES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "candidate": lambda rows: rows.candidate,
    "right": lambda rows: rows.candidate == 1,
    "unchanged": lambda rows: rows.candidate == rows.baseline,
    "gain": lambda rows: rows.candidate - rows.baseline,
    "loss": lambda rows: rows.baseline - rows.candidate,
    "squared_loss": lambda rows: (rows.baseline - rows.candidate) ** 2,
    "ndcg": lambda rows: ndcg_10(1 / rows.candidate),
    "ndcg_loss": lambda rows: ndcg_10(1 / rows.baseline) - ndcg_10(1 / rows.candidate),
    "kl": lambda rows: rows["kl"],
    "same_top": lambda rows: rows["same_top"],
    # Scores of tokens are losses: minus the logarithm of the actual token's probability.
    "probability_change": lambda rows: np.exp(-rows.candidate) - np.exp(-rows.baseline),
    "squared_probability_change": lambda rows: SCORES["probability_change"](rows) ** 2,
}
YES_NO = ("right", "unchanged")
HUMAN = ("lee", "wordsim", "simlex")


class BootstrapMetrics:
    """One candidate's metrics, replicate by replicate, from the rows of items.parquet (`kerf.evaluate.common`)."""

    def __init__(self, items: pd.DataFrame) -> None:
        floats = items.astype(dict.fromkeys(items.select_dtypes("float32"), float))
        self.tables = {str(name): rows for name, rows in floats.groupby("metric", observed=True)}
        self.resamplers: dict[tuple[str, int], st.Documents] = {}

    def of(self, metric: str) -> st.Draws | None:
        """The metric, resampled; None where the table has no scores of it."""
        try:
            return self._of(metric)
        except KeyError:  # the run is older than these rows, or this column
            return None

    def _of(self, name: str) -> st.Draws | None:
        metric = METRICS[name]
        if metric.scores:
            table, score = metric.scores
            values = np.asarray(SCORES[score](self.tables[table]), float)
            if metric.quantile is not None:
                return self._documents(table).quantiles(values, metric.quantile)
            means = self._documents(table).means(values)
            return means.map(getattr(np, metric.of_mean)) if metric.of_mean else means
        if name == "loss_pearson":
            x, y = self.tables["kl"][["candidate", "baseline"]].to_numpy(float).T
            return self._documents("kl").correlations(x, y)
        if name == "similarity_spearman":
            sentences = self._documents("cosine", RANK_REPLICATES)
            return _spearman(sentences, self.tables["similarity"], "baseline", "candidate")
        if name == "score_spearman":
            x, y = self.tables["score"][["baseline", "candidate"]].to_numpy(float).T
            items = np.arange(len(x))
            return self._documents("score", RANK_REPLICATES).spearman(x, y, items, items)
        return self._human(name) if name.startswith("human_spearman") else None

    def _documents(self, table: str, replicates: int = 0) -> st.Documents:
        # Fewer replicates for language models, since their quantiles take long.
        language = table in ("kl", "last_word", "continuation")
        replicates = replicates or (REPLICATES if language else st.REPLICATES)
        if (table, replicates) not in self.resamplers:
            documents = self.tables[table].document.to_numpy(int)
            self.resamplers[table, replicates] = st.Documents(documents, replicates)
        return self.resamplers[table, replicates]

    def _human(self, metric: str) -> st.Draws:
        name = metric.removeprefix("human_spearman").strip("_")
        if name in HUMAN:
            return self._rated(name, "candidate")
        sides = ("baseline", "candidate")
        before, after = (st.average([self._rated(name, side) for name in HUMAN]) for side in sides)
        return before - after if name == "loss" else after

    def _rated(self, dataset: str, side: str) -> st.Draws:
        rows = self.tables[f"human_{dataset}"]
        texts = np.arange(int(max(rows.left.max(), rows.right.max())) + 1)
        return _spearman(st.Documents(texts, st.REPLICATES // 2), rows, "score", side)


def _spearman(documents: st.Documents, pairs: pd.DataFrame, x: str, y: str) -> st.Draws:
    left, right = pairs.left.to_numpy(int), pairs.right.to_numpy(int)
    before, after = pairs[[x, y]].to_numpy(float).T
    return documents.spearman(before, after, left, right)
