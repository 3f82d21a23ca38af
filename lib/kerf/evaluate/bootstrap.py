"""The metrics of one candidate in every bootstrap replicate, from its table of per-item scores.

The draws depend on the items alone, so replicate i of two candidates draws the same documents: differences are paired.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from kerf.evaluate import stats as st
from kerf.evaluate.causal_metrics import REPLICATES
from kerf.evaluate.fidelity import RANK_REPLICATES, joined
from kerf.evaluate.metrics import METRICS

SCORES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "candidate": lambda rows: rows.candidate,
    "right": lambda rows: rows.candidate == 1,
    "unchanged": lambda rows: rows.candidate == rows.baseline,
    "gain": lambda rows: rows.candidate - rows.baseline,
    "loss": lambda rows: rows.baseline - rows.candidate,
    "squared_loss": lambda rows: (rows.baseline - rows.candidate) ** 2,
    "changed": lambda rows: rows.candidate != rows.baseline,
    "kl": lambda rows: rows["kl"],
    "acceptance": lambda rows: rows.acceptance,
    "same_top": lambda rows: rows["same_top"],
    # Scores of tokens are losses: minus the logarithm of the actual token's probability.
    "probability_change": lambda rows: np.exp(-rows.candidate) - np.exp(-rows.baseline),
    "squared_probability_change": lambda rows: SCORES["probability_change"](rows) ** 2,
}
YES_NO = ("right", "unchanged")
SIDES = ("baseline", "candidate")
HUMAN = ("lee", "wordsim", "simlex")


class BootstrapMetrics:
    """One candidate's metrics, replicate by replicate, from the rows of items.parquet (`kerf.evaluate.common`)."""

    def __init__(self, items: pd.DataFrame) -> None:
        floats = items.astype(dict.fromkeys(items.select_dtypes("float32"), float))
        domains = floats.domain if "domain" in floats else pd.Series("", floats.index)
        groups = floats.groupby([floats.metric.astype(str), domains.astype(object).fillna("")])
        self.tables = {(str(name), str(domain)): rows for (name, domain), rows in groups}
        self.resamplers: dict[tuple[str, str, int], st.Documents] = {}

    def of(self, metric: str, domain: str | None = None) -> st.Draws | None:
        """The metric of a domain, resampled; None where the table has no scores of it."""
        try:
            return self._of(metric, domain or "")
        except KeyError:  # the run is older than these rows, or this column
            return None

    def _of(self, name: str, domain: str) -> st.Draws | None:
        metric = METRICS[name]
        if metric.scores:
            table, score = metric.scores
            documents, rows = self._documents(table, domain), self.tables[table, domain]
            if score == "ratio":
                before, after = (documents.means(rows[k].to_numpy(float)) for k in SIDES)
                return after / before
            values = np.asarray(SCORES[score](rows), float)
            if metric.quantile is not None:
                return documents.quantiles(values, metric.quantile)
            means = documents.means(values)
            return means.map(getattr(np, metric.of_mean)) if metric.of_mean else means
        if name == "loss_pearson":
            x, y = self.tables["kl", domain][["candidate", "baseline"]].to_numpy(float).T
            return self._documents("kl", domain).correlations(x, y)
        if name == "similarity_spearman":
            sentences = self._documents("cosine", domain, RANK_REPLICATES)
            return _spearman(sentences, self.tables["similarity", domain], *SIDES)
        if name == "score_spearman":
            x, y = self.tables["score", domain][[*SIDES]].to_numpy(float).T
            items = np.arange(len(x))
            return self._documents("score", domain, RANK_REPLICATES).spearman(x, y, items, items)
        return self._human(name, domain) if name.startswith("human_spearman") else None

    def _documents(self, table: str, domain: str, replicates: int = 0) -> st.Documents:
        # Fewer replicates for language models, since their quantiles take long.
        language = table in ("kl", "last_word", "continuation")
        replicates = replicates or (REPLICATES if language else st.REPLICATES)
        key = (table, domain, replicates)
        if key not in self.resamplers:
            documents = self.tables[table, domain].document.to_numpy(int)
            self.resamplers[key] = st.Documents(documents, replicates)
        return self.resamplers[key]

    def _human(self, metric: str, domain: str) -> st.Draws:
        name = metric.removeprefix("human_spearman").strip("_")
        if name in HUMAN:
            return self._rated(name, "candidate")
        if domain:  # a table of the user's own
            rows = self.tables["human", domain]
            pairs = st.Documents(joined(rows.left.to_numpy(int), rows.right.to_numpy(int)))
            before, after = (_spearman(pairs, rows, "score", side) for side in SIDES)
        else:
            sets = [[self._rated(name, side) for name in HUMAN] for side in SIDES]
            before, after = map(st.average, sets)
        return before - after if name == "loss" else after

    def _rated(self, dataset: str, side: str) -> st.Draws:
        rows = self.tables[f"human_{dataset}", ""]
        texts = np.arange(int(max(rows.left.max(), rows.right.max())) + 1)
        return _spearman(st.Documents(texts, st.REPLICATES // 2), rows, "score", side)


def _spearman(documents: st.Documents, pairs: pd.DataFrame, x: str, y: str) -> st.Draws:
    left, right = pairs.left.to_numpy(int), pairs.right.to_numpy(int)
    before, after = pairs[[x, y]].to_numpy(float).T
    return documents.spearman(before, after, left, right)
