"""The metrics by name, from metrics.toml; others come through the entry point `kerf.metrics`."""

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
    """One metric; metrics.toml defines the fields.

    An extension's is the mean of `measure(items of a source)` for a model of `families`: values and documents, (items,) both.
    """

    name: str
    label: str
    doc: str
    formula: str
    better: str = "higher"
    unit: str = ""
    items: str = "items"
    perfect: float | None = None
    gated: bool = True
    figure: bool = False
    scores: tuple[str, str] | None = None
    quantile: float | None = None
    of_mean: str = ""
    families: tuple[str, ...] = ()
    measure: "Callable[[pd.DataFrame], tuple[np.ndarray, np.ndarray]] | None" = None


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SYMBOLS: dict[str, str] = _TABLE["symbols"]
_OWN = [Metric(name, **fields) for name, fields in _TABLE["metrics"].items()]
METRICS = Registry("kerf.metrics", *_OWN)
FIGURES = tuple(metric.name for metric in _OWN if metric.figure)


def metrics_of(family: str) -> list[Metric]:
    """Metrics of extensions for a family of models."""
    return [metric for metric in METRICS.values() if metric.measure and family in metric.families]


def by_name(rows: list[dict]) -> dict[str, dict]:
    """The first row of each name, which is that of the worst domain."""
    return {row["name"]: row for row in reversed(rows)}
