"""One side of a comparison of two candidates, and the check that two sides can be paired."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kerf import evaluate
from kerf.config import Evaluation
from kerf.core.cache import machine, meta
from kerf.core.errors import refuse
from kerf.evaluate.common import read_items, text_digest
from kerf.evaluate.metrics import FIGURES
from kerf.models import registry

Key = tuple[str, str | None]  # name of a metric, and its domain
IDENTITY = ("metric", "domain", "document", "left", "right", "position", "text")  # of an item


@dataclass(frozen=True)
class ComparisonInput:
    """A candidate's metric rows by name and domain, its exact figures and its per-item scores (`items`).

    origin: weights and evaluation (digests, which have to be equal), run, machine and settings.
    """

    name: str
    model: str
    steps: list[dict]
    rows: dict[Key, dict]
    figures: dict
    items: pd.DataFrame
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[Key, float | None]:
        """Value of every metric and figure."""
        figures = {(name, None): value for name, value in self.figures.items()}
        return figures | {key: row["value"] for key, row in self.rows.items()}


def keyed(rows: list[dict]) -> dict[Key, dict]:
    """Metric rows by name and domain."""
    return {(row["name"], row.get("domain")): row for row in rows}


def candidate_input(
    name: str, model: str, steps: list[dict], candidate: str | Path, spec: Evaluation
) -> ComparisonInput:
    """The side of a candidate in a directory (empty: the baseline), measured or from the cache."""
    comparison = evaluate.compare(model, candidate, spec)
    compressed = meta(Path(candidate))["result"] if candidate else {}
    origin = {
        "run": meta(comparison)["run"],
        "weights": registry.weights_digest(registry.resolve(model)),
        "evaluation": text_digest(spec),
        "machine": [machine()[key] for key in ("model", "threads")],
        "settings": {f"evaluation.{key}": value for key, value in spec.model_dump().items()},
    }
    rows = keyed(evaluate.read(comparison)[0])
    figures = {key: compressed[key] for key in FIGURES if key in compressed}
    return ComparisonInput(name, model, steps, rows, figures, read_items(comparison), origin)


def check(a: ComparisonInput, b: ComparisonInput) -> None:
    """Raise InputError for two sides that cannot be paired."""
    if a.origin.get("weights") != b.origin.get("weights"):
        same = f"its weights of {b.model} are other ones"
        other = same if a.model == b.model else f"it is one of {b.model}"
        raise refuse("B", b.name, f"a candidate of the same model as {a.name}, {a.model}; {other}")
    shared = set(a.items.metric) & set(b.items.metric)
    columns = [name for name in IDENTITY if name in a.items and name in b.items]
    tables = (side.items[side.items.metric.isin(shared)][columns] for side in (a, b))
    left, right = (table.astype(object).reset_index(drop=True) for table in tables)
    same_text = a.origin.get("evaluation") == b.origin.get("evaluation")
    if same_text and shared and left.equals(right):
        return
    before, after = (side.origin.get("settings", {}) for side in (a, b))
    changes = [f"{k} = {after.get(k)} against {v}" for k, v in before.items() if v != after.get(k)]
    others = ", ".join(changes) or "another text"
    raise refuse("B", b.name, f"measured on the items of {a.name}; it was on others ({others})")
