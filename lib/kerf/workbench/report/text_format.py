"""Figures and verdicts of a run as text: numbers, intervals, thresholds, and whether a candidate may be used and why."""

import math
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from textwrap import shorten
from typing import Any

from kerf.evaluate.metrics import METRICS, Metric

OPERATORS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than", "==": "exactly"}
# Of a verdict: the answer to "May it be used?", and the style of its mark.
TONES = {"PASS": ("yes", "pass"), "FAIL": ("no", "fail"), "INCONCLUSIVE": ("not decided", "open")}
TONES |= {"NOT MEASURED": ("not measured", "broke")}
# Of an answer: its words in the summary of a run.
COUNTED = {"yes": "may be used", "no": "may not", "not decided": "cannot be decided yet"}
COUNTED |= {"not measured": "could not be measured", "not judged": "not judged"}


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
        return replace(metric, label=metric.label[:1].upper() + metric.label[1:])
    return Metric(name, label=name, doc="", formula="")


def metrics_of(candidate: dict) -> dict[str, dict]:
    """Rows of a candidate's metrics by name."""
    return {row["name"]: row for row in candidate.get("metrics") or []}


def settings_of(results: dict) -> dict[str, Any]:
    """Values of the settings that all candidates share."""
    return {path: entry["value"] for path, entry in (results.get("settings") or {}).items()}


def layers_by_grid(model: dict) -> dict[str, list[str]]:
    """Names of the baseline's layers whose weights already lie on a low-bit grid, by the grid."""
    grids: dict[str, list[str]] = {}
    for name, grid in (model.get("on_grid") or {}).items():
        grids.setdefault(f"{grid['bits']} bits in groups of {grid['group_size']}", []).append(name)
    return grids


def answer(candidate: dict, gates: list[dict]) -> dict[str, str]:
    """May it be used? The answer, the tone of its mark and why; gates: explained."""
    verdict = candidate.get("verdict")
    if candidate["name"] == "baseline":
        word, tone, why = "reference", "plain", "the model as it is"
    elif candidate.get("status") in ("failed", "skipped"):
        (word, tone), why = TONES["NOT MEASURED"], failure(candidate)
    elif not gates or verdict not in TONES:
        word, tone, why = "not judged", "plain", "no threshold applies to it"
    elif verdict == "PASS":
        few = {1: "its one threshold was met", 2: "both thresholds were met"}
        (word, tone), why = TONES[verdict], f"all {len(gates)} thresholds were met"
        why = few.get(len(gates), why)
    else:
        (word, tone), reasons = TONES[verdict], [g for g in gates if g["verdict"] == verdict]
        why = "".join(map(reason, reasons[:1]))
        why += f"; and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return {"answer": word, "tone": tone, "why": why}


def failure(candidate: dict) -> str:
    """Why a candidate was not measured, in a clause: the notebook, the cell and the message."""
    error = candidate.get("error") or {}
    why = shorten(str(error.get("message") or "no message"), 300, placeholder=" …")
    first = "the baseline was not measured: " if candidate.get("status") == "skipped" else ""
    return f"{first}{error.get('notebook') or 'a notebook'} failed in cell {error.get('cell', '?')}: {why}"


def explained(gate: dict, candidate: dict) -> dict:
    """A gate with its metric (`about`), its condition in words (`required`) and the row it judged (`measured`, or None)."""
    metric = metrics_of(candidate).get(gate["metric"])
    figure = candidate.get(gate["metric"])  # a size or a time is no metric row
    if metric is None and isinstance(figure, (int, float)):
        metric = dict.fromkeys(("low", "high", "noise", "n")) | {"value": figure}
    about = describe(gate["metric"])
    return {**gate, "about": about, "required": threshold(gate), "measured": metric}


def reason(gate: dict) -> str:
    """What an explained gate requires and what was measured, in a clause."""
    label, unit = gate["about"].label, gate["about"].unit
    label = label[:1].lower() + label[1:] if label[1:2].islower() else label  # "nDCG" stays
    metric, items = gate["measured"] or {}, gate.get("needed_n")
    value, cause = metric.get("value"), metric.get("why")
    if value is None:
        missing = f"is {cause}" if cause else "was not measured"
        return f"{label} must be {gate['required']}, but it {missing}"
    span = interval(metric, like=value)
    text = f"{label} must be {gate['required']}, measured {number(value, unit)}"
    text += f" ({span})" if span != "–" and unit != "bytes" else ""
    text += f"; {cause}" if cause else ""
    if gate["verdict"] == "INCONCLUSIVE":
        text += f"; about {items:,.0f} items would" if items else "; more items would be needed to"
        text += " decide"
    return text


def step_in_words(step: dict) -> str:
    """`quantize gptq, bits 4` of {"quantize": {"method": "gptq", "bits": 4}}."""
    ((kind, keys),) = step.items()
    main = ("method", "bits", "sparsity")  # they distinguish steps, so they come first
    ordered = sorted(keys or {}, key=lambda key: (key not in main, key != "method"))
    words = [str(keys[key]) if key == "method" else f"{key} {keys[key]}" for key in ordered]
    return f"{kind} {', '.join(words)}".strip()


def steps_in_words(candidate: dict) -> str:
    """The chain of a candidate, empty for the baseline."""
    return "; ".join(step_in_words(step) for step in candidate.get("steps") or [])


def summary(rows: list[dict]) -> str:
    """The verdicts of the release candidates in a sentence, or of all candidates; rows: of the report's first table."""
    released = [row for row in rows if row["release"]]
    released = released or [row for row in rows if not row["baseline"]]
    if not released:
        return "There is no candidate besides the baseline."
    if len(released) == 1:
        word = released[0]["answer"]
        verb = {"no": "may not be used", "not judged": "was not judged"}.get(word) or COUNTED[word]
        return f"{released[0]['name']}, the one candidate meant for release, {verb}."
    counts = Counter(row["answer"] for row in released)
    *most, last = [f"{counts[word]} {text}" for word, text in COUNTED.items() if counts[word]]
    counted = f"{', '.join(most)} and {last}" if most else last
    return f"Of the {len(released)} candidates meant for release, {counted}."
