"""The slice of the evaluation text on which a candidate loses most: by length, script or class of the texts.

A mean over all texts hides a group that suffers. The worst of m slices is chosen by looking, so its interval has the level
1 - 0.05 / m (Bonferroni).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from kerf.data import segmentation
from kerf.evaluate import stats as st
from kerf.evaluate.bootstrap import SCORES
from kerf.evaluate.metrics import METRICS

LENGTHS = ("short", "middle", "long")  # thirds of a domain's texts
POSITIONS = ("first", "middle", "last")  # thirds of the scored positions of a chunk
SLICED = ("cosine_mean", "drop_in_ndcg_10_loss", "ndcg_10_loss", "probe_accuracy_loss", "kl_mean")


def worst_slices(items: pd.DataFrame) -> list[dict[str, Any]]:
    """The worst slice of each metric in SLICED: metric, domain, by, slice, value, low, high, n, and `of`, how many were looked at.

    items: rows of items.parquet (`kerf.evaluate.common`). Slices with too few documents for an interval do not count.
    """
    found = []
    for name in SLICED:
        table, score = METRICS[name].scores or ("", "")
        rows = items[items.metric == table]
        if rows.empty or "text" not in rows:
            continue
        scored = rows.assign(score=np.asarray(SCORES[score](rows), float))
        slices = [part for part in _slices(scored) if _documents(part[-1]) >= st.LEAST_DOCUMENTS]
        if slices:
            found.append(_worst(name, slices))
    return found


def _slices(rows: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Domain, kind and name of each slice, and its rows."""
    for domain, own in rows.groupby("domain", observed=True):
        texts = own.text.astype(str)
        scripts = {text: segmentation.script_of(text) for text in texts.unique()}
        kinds = {"script": texts.map(scripts)}
        if "position" in own and own.position.notna().all():
            kinds["position"] = _thirds(own.position, POSITIONS)
        else:
            kinds["length"] = _thirds(texts.map(len), LENGTHS)
        if "label" in own and own.label.notna().all():
            kinds["class"] = own.label.astype(str)
        for kind, values in kinds.items():
            names = pd.unique(pd.Series(values))
            for name in names if len(names) > 1 else ():
                yield str(domain), kind, name, own[np.asarray(values) == name]


def _thirds(values: pd.Series, names: tuple[str, ...]) -> pd.Series:
    edges = np.quantile(values, [1 / 3, 2 / 3])
    return pd.Series(np.array(names)[np.digitize(values, edges, right=True)])


def _documents(rows: pd.DataFrame) -> int:
    return rows.document.nunique()


def _worst(metric: str, slices: list[tuple[str, str, str, pd.DataFrame]]) -> dict[str, Any]:
    sign = 1 if METRICS[metric].better == "lower" else -1
    domain, kind, name, rows = max(slices, key=lambda part: sign * part[-1].score.mean())
    draws = st.Documents(rows.document.to_numpy(int)).means(rows.score.to_numpy(float))
    low, high = draws.interval(st.TAIL / len(slices))
    about = {"metric": metric, "domain": domain, "by": kind, "slice": name}
    return {
        **about,
        "value": draws.value,
        "low": low,
        "high": high,
        "n": len(rows),
        "of": len(slices),
    }
