"""Verdicts in words: for each use whether a candidate may be used, and the threshold and domain that decided."""

from collections import Counter
from textwrap import shorten
from typing import Any

from kerf.core.errors import listed
from kerf.evaluate.gates import share
from kerf.workbench.report.text_format import describe, interval, label_of, number, threshold

# Of a verdict: the answer to "May it be used?", and the style of its mark.
TONES = {"PASS": ("yes", "pass"), "FAIL": ("no", "fail"), "INCONCLUSIVE": ("not decided", "open")}
TONES |= {"NOT MEASURED": ("not measured", "broke")}
# Of an answer: its words in the summary of a run.
COUNTED = {"yes": "may be used", "no": "may not", "not decided": "cannot be decided yet"}
COUNTED |= {"not measured": "could not be measured", "not judged": "not judged"}


def deciding(candidate: dict) -> list[dict]:
    """The gates that a candidate's verdict rests on; in files of runs without uses, all."""
    return [gate for gate in candidate.get("gates") or [] if gate.get("decides", True)]


def explained(gate: dict, candidate: dict) -> dict:
    """A gate with its metric (`about`), its condition in words (`required`) and the row it judged (`measured`, or None)."""
    rows = [row for row in candidate.get("metrics") or [] if row["name"] == gate["metric"]]
    metric = next((row for row in rows if row.get("domain") == gate.get("domain")), None)
    figure = candidate.get(gate["metric"])  # a size or a time is no metric row
    if not rows and isinstance(figure, (int, float)):
        metric = dict.fromkeys(("low", "high", "noise", "n")) | {"value": figure}
    words = {"about": describe(gate["metric"]), "label": label_of(gate, gate["metric"])}
    return {**gate, **words, "required": threshold(gate), "measured": metric}


def answer(candidate: dict, gates: list[dict], use: str | None = None) -> dict[str, str]:
    """May it be used? The answer, the tone of its mark, why, and `short`: why in a few words. gates: those that decide, explained."""
    verdict = (candidate.get("uses") or {}).get(use) if use else candidate.get("verdict")
    reasons = [gate for gate in gates if gate["verdict"] == verdict]
    if candidate["name"] == "baseline":
        word, tone, why, short = "reference", "plain", "the model as it is", ""
    elif candidate.get("status") in ("failed", "skipped"):
        (word, tone), why, short = TONES["NOT MEASURED"], failure(candidate), ""
    elif not reasons or verdict not in TONES:
        word, tone, why, short = "not judged", "plain", "no threshold applies to it", ""
    else:
        word, tone = TONES[verdict]
        first, *others = sorted(reasons, key=_weight, reverse=True)
        short = {"FAIL": first["label"], "INCONCLUSIVE": missing(first)}.get(verdict, "")
        why = reason(first) + (f"; and {len(others)} more" if others else "")
        if verdict == "PASS":
            met = {1: "its one threshold was met", 2: "both thresholds were met"}
            why = f"{met.get(len(gates), f'all {len(gates)} thresholds were met')}; the closest: {why.partition(';')[0]}"
    return {"answer": word, "tone": tone, "why": why, "short": short}


def _weight(gate: dict) -> tuple[bool, float]:
    """How much a gate says about its verdict: of undecided ones how much is missing, of others the share of the allowed loss."""
    needed, n = gate.get("needed_n"), (gate["measured"] or {}).get("n")
    if gate["verdict"] == "INCONCLUSIVE":
        return not needed, needed / n if needed and n else 0.0
    used = share(gate)
    return used is None and gate["verdict"] == "FAIL", used or 0.0


def missing(gate: dict) -> str:
    """What would decide an explained gate that is not decided: `1,900 more queries on docs`."""
    row, needed = gate["measured"] or {}, gate.get("needed_n")
    if not row:
        return "no evidence" if gate.get("why") else "not measured"
    where = f" on {gate['domain']}" if gate.get("domain") else ""
    if not needed or not row.get("n"):
        return f"more {gate['about'].items}{where}"
    more = float(f"{max(1, needed - row['n']):.2g}")
    return f"{more:,.0f} more {gate['about'].items}{where}"


def reason(gate: dict) -> str:
    """What an explained gate requires and what was measured, in a clause."""
    label, unit = gate["label"], gate["about"].unit
    label = label[:1].lower() + label[1:] if label[1:2].islower() else label  # "nDCG" stays
    metric, items = gate["measured"] or {}, gate.get("needed_n")
    value, cause = metric.get("value"), metric.get("why")
    if value is None:
        lacking = f"is {cause}" if cause else "was not measured"
        lacking = f"there is {gate['why']}" if gate.get("why") else f"it {lacking}"
        return f"{label} must be {gate['required']}, but {lacking}"
    span = interval(metric, like=value)
    text = f"{label} must be {gate['required']}, measured {number(value, unit)}"
    text += f" ({span})" if span != "–" and unit != "bytes" else ""
    text += f"; {cause}" if cause else ""
    if gate["verdict"] == "INCONCLUSIVE":
        what = gate["about"].items
        text += (
            f"; about {items:,.0f} {what} would" if items else f"; more {what} would be needed to"
        )
        text += " decide"
    return text


def failure(candidate: dict) -> str:
    """Why a candidate was not measured, in a clause: the notebook, the cell and the message."""
    error = candidate.get("error") or {}
    why = shorten(str(error.get("message") or "no message"), 300, placeholder=" …")
    first = "the baseline was not measured: " if candidate.get("status") == "skipped" else ""
    return f"{first}{error.get('notebook') or 'a notebook'} failed in cell {error.get('cell', '?')}: {why}"


def summary(rows: list[dict], use: list[str]) -> str:
    """The verdicts of the release candidates in a sentence, or of all candidates; rows: of the report's first table."""
    released = [row for row in rows if row["release"]]
    released = released or [row for row in rows if not row["baseline"]]
    if not released:
        return "There is no candidate besides the baseline."
    purpose = f"For {listed(use, 'and')}: " if use else ""
    if len(released) == 1:
        word = released[0]["answer"]
        verb = {"no": "may not be used", "not judged": "was not judged"}.get(word) or COUNTED[word]
        return f"{purpose}{released[0]['name']}, the one candidate meant for release, {verb}."
    counts: Counter[Any] = Counter(row["answer"] for row in released)
    *most, last = [f"{counts[word]} {text}" for word, text in COUNTED.items() if counts[word]]
    counted = f"{', '.join(most)} and {last}" if most else last
    who = f"{'of' if purpose else 'Of'} the {len(released)} candidates meant for release"
    return f"{purpose}{who}, {counted}."
