"""The metrics of one candidate in every bootstrap replicate, from its table of per-item scores.

The draws depend on the items alone, so replicate i of two candidates draws the same documents, and
their difference is paired. Metrics without per-item scores, such as peak memory, are not resampled.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from kerf.evaluate import stats as st
from kerf.evaluate.causal_metrics import REPLICATES
from kerf.evaluate.fidelity import RANK_REPLICATES
from kerf.evaluate.metrics import METRICS
from kerf.evaluate.ranking import ndcg_10


def _probability_change(rows: pd.DataFrame) -> pd.Series:
    """Change of the probability of the reference token; the scores are its losses."""
    return np.exp(-rows.candidate) - np.exp(-rows.baseline)


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
    "probability_change": _probability_change,
    "squared_probability_change": lambda rows: _probability_change(rows) ** 2,
}
YES_NO = ("right", "unchanged")
HUMAN = ("lee", "wordsim", "simlex")


class BootstrapMetrics:
    """One candidate's metrics, replicate by replicate."""

    def __init__(self, items: pd.DataFrame) -> None:
        """items: the rows of items.parquet, see `kerf.evaluate.per_item_scores`."""
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
            values = _floats(SCORES[score](self.tables[table]))
            if metric.quantile is not None:
                return self._documents(table).quantiles(values, metric.quantile)
            means = self._documents(table).means(values)
            return means.map(getattr(np, metric.of_mean)) if metric.of_mean else means
        if name == "loss_pearson":
            rows = self.tables["kl"]
            x, y = _floats(rows.candidate), _floats(rows.baseline)
            return self._documents("kl").correlations(x, y)
        if name == "similarity_spearman":
            sentences = self._documents("cosine", RANK_REPLICATES)
            return _spearman(sentences, self.tables["similarity"], "baseline", "candidate")
        if name == "score_spearman":
            rows, queries = self.tables["score"], self._documents("score", RANK_REPLICATES)
            x, y = _floats(rows.baseline), _floats(rows.candidate)
            return queries.spearman(x, y, np.arange(len(rows)))
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
    return documents.spearman(_floats(pairs[x]), _floats(pairs[y]), left, right)


def _floats(values: pd.Series) -> np.ndarray:
    return np.asarray(values, float)
