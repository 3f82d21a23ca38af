"""One side of a comparison of two candidates, and which two can be paired: those of one model, measured on the same items."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kerf import evaluate
from kerf.config import Evaluation
from kerf.core.cache import machine, meta
from kerf.core.errors import refuse
from kerf.data import corpora
from kerf.evaluate.metrics import FIGURES
from kerf.models import registry

IDENTITY = [
    "metric",
    "document",
    "left",
    "right",
    "position",
    "text",
]  # what makes an item the one it is


@dataclass(frozen=True)
class ComparisonInput:
    """One of the two: its metric rows by name, its exact figures, and the table of its items."""

    name: str
    model: str
    steps: list[dict]
    rows: dict[str, dict]
    figures: dict
    items: pd.DataFrame  # see kerf.evaluate.per_item_scores
    origin: dict = field(
        default_factory=dict
    )  # what must be equal: weights, evaluation text; and run, machine, settings


def candidate_input(
    name: str, model: str, steps: list[dict], candidate: str | Path, spec: Evaluation
) -> ComparisonInput:
    """A side that is measured now, or was before: the candidate in a directory (empty: the baseline)."""
    comparison = evaluate.compare(model, candidate, spec)
    made = meta(Path(candidate))["result"] if candidate else {}
    origin = {
        "run": meta(comparison)["run"],
        "weights": registry.weights_digest(registry.resolve(model)),
        "evaluation": corpora.digest(spec.texts),
        "machine": [machine()[key] for key in ("model", "threads")],
        "settings": {f"evaluation.{key}": value for key, value in spec.model_dump().items()},
    }
    rows = {row["name"]: row for row in evaluate.read(comparison)[0]}
    figures = {key: made[key] for key in FIGURES if key in made}
    return ComparisonInput(
        name, model, steps, rows, figures, pd.read_parquet(comparison / "items.parquet"), origin
    )


def check(a: ComparisonInput, b: ComparisonInput) -> None:
    """Refuse two sides that cannot be paired."""
    if a.origin.get("weights") != b.origin.get("weights"):
        own = (
            f"its weights of {b.model} are other ones"
            if a.model == b.model
            else f"it is one of {b.model}"
        )
        raise refuse("B", b.name, f"a candidate of the same model as {a.name}, {a.model}; {own}")
    before, after = (side.origin.get("settings", {}) for side in (a, b))
    differing = [
        f"{key} = {after.get(key)} against {before[key]}"
        for key in before
        if before[key] != after.get(key)
    ]
    same_text = a.origin.get("evaluation") == b.origin.get("evaluation")
    if not same_text or not _same_items(a.items, b.items):
        raise refuse(
            "B",
            b.name,
            f"measured on the items of {a.name}; it was on others ({', '.join(differing) or 'another text'})",
        )


def _same_items(a, b) -> bool:
    shared = set(a.metric) & set(b.metric)
    columns = [name for name in IDENTITY if name in a and name in b]
    left, right = (
        side[side.metric.isin(shared)][columns].astype(object).reset_index(drop=True)
        for side in (a, b)
    )
    return bool(shared) and left.equals(right)
