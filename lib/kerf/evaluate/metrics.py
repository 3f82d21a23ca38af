"""The metrics by name, from metrics.toml beside this file. A new one is an entry there, or an entry point `kerf.metrics`."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kerf.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class Metric:
    """One metric as reports and criteria know it; metrics.toml says what the fields mean.

    measure, families: of a metric that other code brings: a function of the table of items of a comparison
    (`kerf.evaluate.per_item_scores`) to the values of its items and the document of each, (items,) both, whose mean is
    the metric; and the families of models that it is of.
    """

    name: str
    label: str
    doc: str
    formula: str
    better: str = "higher"
    unit: str = ""
    perfect: float | None = None
    gated: bool = True
    figure: bool = False
    families: tuple[str, ...] = ()
    measure: "Callable[[pd.DataFrame], tuple[np.ndarray, np.ndarray]] | None" = None


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SYMBOLS: dict[str, str] = _TABLE["symbols"]
METRICS = Registry(
    "kerf.metrics", *(Metric(name, **fields) for name, fields in _TABLE["metrics"].items())
)
FIGURES = tuple(name for name, fields in _TABLE["metrics"].items() if fields.get("figure"))


def metrics_of(family: str) -> list[Metric]:
    """Metrics of a family of models that other code brings."""
    return [metric for metric in METRICS.values() if metric.measure and family in metric.families]
