"""A run in words: figures for people, may a candidate be used and why, the summary of a report."""

import math
from datetime import UTC, datetime
from textwrap import shorten

from kerf.evaluate.metrics import METRICS

OPS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than", "==": "exactly"}
TONES = {
    "PASS": ("yes", "pass"),
    "FAIL": ("no", "fail"),
    "INCONCLUSIVE": ("not decided", "open"),
    "NOT MEASURED": ("not measured", "broke"),
}


def number(value, unit: str = "", like=None) -> str:
    """A figure for people: as many places as its size deserves, or as `like` has."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    text = (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.{_places(value if like is None else like)}f}"
    )
    return f"{text.replace('-', '−')} {unit}".strip()


def interval(entry: dict | None, unit: str = "", like=None) -> str:
    """`low to high` with the places of the value it belongs to."""
    if not entry or entry.get("low") is None or entry.get("high") is None:
        return "–"
    return f"{number(entry['low'], unit, like)} to {number(entry['high'], unit, like)}"


def asked(gate: dict) -> str:
    """A gate's threshold in words."""
    threshold, unit = gate["threshold"], describe(gate["metric"])["unit"]
    if unit == "bytes":
        return f"{OPS.get(gate['op'], gate['op'])} {number(threshold, unit)}"
    text = f"{threshold:.6g}".replace("-", "−")
    text = text + "0" if len(text.partition(".")[2]) == 1 else text
    return f"{OPS.get(gate['op'], gate['op'])} {text} {unit}".strip()


def moment(text: str) -> str:
    """An ISO time as people write it; anything else as it stands."""
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return f"{when:%Y-%m-%d %H:%M}" + (" UTC" if when.tzinfo == UTC else "")


def describe(name: str | None) -> dict:
    """Label, explanation, formula, unit and direction of a metric; the bare name if it is unknown."""
    metric = METRICS.get(name)
    label = metric.label[:1].upper() + metric.label[1:] if metric else name
    return {
        "name": name,
        "label": label,
        "doc": getattr(metric, "doc", ""),
        "formula": getattr(metric, "formula", ""),
        "unit": getattr(metric, "unit", "") or "",
        "better": getattr(metric, "better", "higher"),
    }


def _places(value):
    size = abs(value)
    if 0.995 <= size < 1:
        return 5 if size > 0.9995 else 4  # the interesting digits come after the nines
    if 0 < size < 0.1:
        return min(8, 1 - math.floor(math.log10(size)) + (size < 0.01))
    return 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0


def answer(candidate: dict, gates: list[dict]) -> dict:
    """May it be used? The word, a tone for its mark, and why."""
    status, verdict = candidate.get("status"), candidate.get("verdict")
    if candidate["name"] == "baseline":
        return {"answer": "reference", "tone": "plain", "why": "the model as it is"}
    if status in ("failed", "skipped"):
        word, tone = TONES["NOT MEASURED"]
        return {"answer": word, "tone": tone, "why": broke(candidate)}
    if not gates or verdict not in TONES:
        return {"answer": "not judged", "tone": "plain", "why": "no threshold applies to it"}
    if verdict == "PASS":
        why = {1: "its one threshold was met", 2: "both thresholds were met"}.get(
            len(gates), f"all {len(gates)} thresholds were met"
        )
    else:
        decisive = [gate for gate in gates if gate["verdict"] == verdict]
        more = f"; and {len(decisive) - 1} more" if len(decisive) > 1 else ""
        why = "; ".join(reason(gate) for gate in decisive[:1]) + more
    word, tone = TONES[verdict]
    return {"answer": word, "tone": tone, "why": why}


def broke(candidate: dict) -> str:
    """What kept a candidate from being measured, in a clause: the notebook, the cell and the message."""
    error = candidate.get("error") or {}
    why = shorten(str(error.get("message") or "no message"), 300, placeholder=" …")
    first = "the baseline was not measured: " if candidate.get("status") == "skipped" else ""
    return f"{first}{error.get('notebook') or 'a notebook'} failed in cell {error.get('cell', '?')}: {why}"


def explained(gate: dict, candidate: dict) -> dict:
    """A gate with what it is `about`, what was `asked` in words, and the row that it `measured` (None: nothing)."""
    metric = next(
        (row for row in candidate.get("metrics") or [] if row["name"] == gate["metric"]), None
    )
    if metric is None and isinstance(
        candidate.get(gate["metric"]), (int, float)
    ):  # a size or a time of its own
        metric = dict.fromkeys(("low", "high", "noise", "n"), None) | {
            "value": candidate[gate["metric"]]
        }
    return {**gate, "about": describe(gate["metric"]), "asked": asked(gate), "measured": metric}


def reason(gate: dict) -> str:
    """What an explained gate asked and what was measured, in a clause."""
    label = gate["about"]["label"] or ""
    label = label[:1].lower() + label[1:] if label[1:2].islower() else label  # "nDCG" stays
    metric, unit = gate["measured"], gate["about"]["unit"]
    if metric is None or metric.get("value") is None:
        return f"{label} {gate['asked']} was asked, and it {'is ' + metric['why'] if metric and metric.get('why') else 'was not measured'}"
    span = interval(metric, like=metric["value"])
    text = f"{label} {gate['asked']} was asked, measured {number(metric['value'], unit)}"
    text += f" ({span})" if span != "–" and unit != "bytes" else ""
    if metric.get("why"):
        text += f"; {metric['why']}"
    if gate["verdict"] == "INCONCLUSIVE":
        needed = gate.get("needed_n")
        text += (
            f"; about {needed:,.0f} items would decide"
            if needed
            else "; more items would be needed to decide"
        )
    return text


def step_in_words(step: dict) -> str:
    """`quantize gptq, bits 4` of {"quantize": {"method": "gptq", "bits": 4}}."""
    ((kind, keys),) = step.items()
    first = ("method", "bits", "sparsity")  # what tells steps apart, before their other keys
    ordered = sorted(
        (keys or {}).items(), key=lambda item: (item[0] not in first, item[0] != "method")
    )
    words = [str(value) if key == "method" else f"{key} {value}" for key, value in ordered]
    return f"{kind} {', '.join(words)}".strip()


def summary(rows: list[dict]) -> str:
    """What a manager needs to know, as one or two sentences."""
    meant = [row for row in rows if row["release"]] or [row for row in rows if not row["baseline"]]
    said = {
        "yes": "may be used",
        "no": "may not",
        "not decided": "cannot be decided yet",
        "not measured": "could not be measured",
        "not judged": "not judged",
    }
    counts = {word: sum(row["answer"] == word for row in meant) for word in said}
    parts = [f"{counts[word]} {text}" for word, text in said.items() if counts[word]]
    if len(meant) == 1:
        answer = meant[0]["answer"]
        verb = {"no": "may not be used", "not judged": "was not judged"}.get(answer, said[answer])
        text = f"{meant[0]['name']}, the one candidate meant for release, {verb}."
    elif meant:
        counted = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        text = f"Of the {len(meant)} candidates meant for release, {counted}."
    else:
        text = "There is no candidate beside the baseline."
    usable = [
        row["candidate"]
        for row in rows
        if row["answer"] == "yes" and row["candidate"].get("bytes_on_disk")
    ]
    if usable:
        best = min(usable, key=lambda candidate: candidate["bytes_on_disk"])
        text += f" The smallest of all that met their thresholds is {best['name']}: {number(best['bytes_on_disk'], 'bytes')}"
        ratio = best.get("compression_ratio")
        text += f", {ratio:.1f} times smaller than the original." if ratio else "."
    return text
