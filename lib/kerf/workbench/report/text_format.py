"""Figures of a run as text: numbers, intervals, thresholds and steps."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from typing import Any

from kerf.evaluate.metrics import METRICS, Metric, by_name

OPERATORS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than", "==": "exactly"}
# Ends of notes that only tell what a layer was calibrated on.
ORDINARY = ("tokens were routed to it", "moments of all calls")


def is_finite(value: float | None) -> bool:
    """Whether there is a value, neither infinite nor NaN."""
    return value is not None and math.isfinite(value)


def number(value: float | None, unit: str = "", like: float | None = None) -> str:
    """A figure rounded for people: its decimals follow its own size, or the size of `like`."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    decimals = 0 if isinstance(value, int) else _decimals(abs(value if like is None else like))
    text = f"{value:,.{decimals}f}".replace("-", "−")
    return f"{text} {unit}".strip()


def _decimals(size: float) -> int:
    if 0.995 <= size < 1:
        return 5 if size > 0.9995 else 4  # the significant digits come after the nines
    if 0 < size < 0.1:
        return min(8, 1 - math.floor(math.log10(size)) + (size < 0.01))
    return next((places for most, places in ((10, 3), (100, 2), (1000, 1)) if size < most), 0)


def interval(row: dict | None, unit: str = "", like: float | None = None) -> str:
    """`low to high`, with the decimals of the value `like`."""
    if not row or row.get("low") is None or row.get("high") is None:
        return "–"
    return f"{number(row['low'], unit, like)} to {number(row['high'], unit, like)}"


def threshold(gate: dict) -> str:
    """The condition of a gate: `at least 0.90`."""
    value, unit = gate["threshold"], describe(gate["metric"]).unit
    operator = OPERATORS.get(gate["op"], gate["op"])
    if unit == "bytes":
        return f"{operator} {number(value, unit)}"
    text = f"{value:.6g}".replace("-", "−")
    text += "0" if len(text.partition(".")[2]) == 1 else ""
    return f"{operator} {text} {unit}".strip()


def moment(text: str) -> str:
    """An ISO time as `2026-01-31 12:00 UTC`; any other text unchanged."""
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return f"{when:%Y-%m-%d %H:%M}" + (" UTC" if when.tzinfo == UTC else "")


def plain(text: object) -> str:
    """Text on one line, escaped so that Markdown and a model hub show it literally."""
    line = escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{letter}" if letter in "|`*[]\\" else letter for letter in line)


def describe(name: str | None) -> Metric:
    """A metric with a capitalized label; of an unknown metric, its bare name."""
    name = name or ""
    if metric := METRICS.get(name):
        first = metric.label[:1] if metric.label[1:2].isupper() else metric.label[:1].upper()
        return replace(metric, label=first + metric.label[1:])  # nDCG stays
    return Metric(name, label=name, doc="", formula="")


def metrics_of(candidate: dict) -> dict[str, dict]:
    """Rows of a candidate's metrics by name; of several domains the first, which is the worst."""
    return by_name(candidate.get("metrics") or [])


def label_of(row: dict, metric: str | None = None) -> str:
    """The label of a metric row, or of `metric` for a gate, with its domain: `Mean cosine on docs`."""
    label = describe(metric or row["name"]).label
    return f"{label} on {row['domain']}" if row.get("domain") else label


def settings_of(results: dict) -> dict[str, Any]:
    """Values of the settings that all candidates share."""
    return {path: entry["value"] for path, entry in (results.get("settings") or {}).items()}


def conventions(how: dict) -> str:
    """How a model is used, in a line; how: `model.conventions` of results.json."""
    prompts = [f"{name} prompt {text!r}" for name, text in how["prompts"].items()]
    parts = {
        "{} by default": how["default_prompt"],
        "pooling by {}": how["pooling"],
        "{} behind the network": " and ".join(how["modules"]),
        "{} similarity": how["similarity"],
        "embeddings of {} dimensions": how["truncate_dim"],
        "texts of at most {} tokens": how["max_seq_length"],
    }
    said = [text.format(value) for text, value in parts.items() if value]
    return ", ".join([*(prompts or ["no prompts"]), *said])


def layers_by_grid(model: dict) -> dict[str, list[str]]:
    """Names of the baseline's layers whose weights already lie on a low-bit grid, by the grid."""
    grids: dict[str, list[str]] = {}
    for name, grid in (model.get("on_grid") or {}).items():
        grids.setdefault(f"{grid['bits']} bits in groups of {grid['group_size']}", []).append(name)
    return grids


def step_in_words(step: dict) -> str:
    """`quantize gptq, bits 4` of {"quantize": {"method": "gptq", "bits": 4}}."""
    ((kind, keys),) = step.items()
    main = ("method", "bits", "sparsity")  # they distinguish steps, so they come first
    ordered = sorted(keys or {}, key=lambda key: (key not in main, key != "method"))
    words = [str(keys[key]) if key == "method" else f"{key} {keys[key]}" for key in ordered]
    return f"{kind} {', '.join(words)}".strip()


def note_of(layer: dict) -> str:
    """What a reader should know of a layer; not how much text an expert or a layer that runs several times was calibrated on."""
    note = layer.get("note") or ""
    return "" if note.endswith(ORDINARY) else note


def steps_in_words(candidate: dict) -> str:
    """The chain of a candidate, empty for the baseline."""
    return "; ".join(step_in_words(step) for step in candidate.get("steps") or [])
