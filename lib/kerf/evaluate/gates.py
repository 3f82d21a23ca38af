"""Gates: thresholds that a candidate's metrics have to meet at their confidence bounds.

A gate passes when the whole interval meets its threshold, fails when no part of it does, and is otherwise INCONCLUSIVE,
with the number of items that would decide. A candidate whose stage broke is NOT MEASURED, which is no failure.
"""

import fnmatch
import json
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerf.config import check_value
from kerf.core.errors import InputError, nearest, printable, refuse
from kerf.core.paths import shipped
from kerf.core.user_files import given_path, read_text
from kerf.evaluate.metrics import FIGURES, METRICS
from kerf.evaluate.stats import items_for_percentile

PASS, FAIL, INCONCLUSIVE, NOT_MEASURED = "PASS", "FAIL", "INCONCLUSIVE", "NOT MEASURED"
_WORST_FIRST = (FAIL, NOT_MEASURED, INCONCLUSIVE)
GRADE_RULE = (
    "Grade: the share of the allowed loss that the worst gate uses, taken at the confidence bound. "
    "A: at most 50 %; B: at most 100 %; C: undecided; D: at most 200 %; F: more."
)
LARGEST = 1e15  # of a threshold, bytes included
_OPS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_KEYS = {"metric", "op", "threshold", "applies_to", "source", "reason"}


def find_criteria(name: str) -> Path:
    """Path of a JSON file, or of a name in data/criteria. Raises InputError where it is neither."""
    known = {path.stem: path for path in (shipped() / "data" / "criteria").glob("*.json")}
    path = given_path(name) if name.endswith(".json") else known.get(name)
    if not path or not path.is_file():
        raise refuse("criteria", name, f"a JSON file or a known name: {nearest(name, known)}")
    return path


def read_criteria(path: Path) -> dict[str, Any]:
    """A criteria file, validated. Raises InputError that names the file, the gate and the key."""
    text = read_text("criteria", path)
    try:
        criteria = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise refuse("criteria", str(path), f"valid JSON ({error})") from None
    schema = criteria.get("schema") if isinstance(criteria, dict) else None
    if isinstance(schema, bool) or schema != 1 or not isinstance(criteria.get("gates"), list):
        raise refuse("criteria", str(path), '{"schema": 1, "gates": [...]}')
    for key in criteria.keys() - {"schema", "gates"}:
        raise refuse(f"{path.stem}.{key}", criteria[key], "no such key; accepted: schema, gates")
    for number, gate in enumerate(criteria["gates"]):
        _check_gate(gate, f"{path.stem}.gates.{number}")
    return criteria


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {printable(key, 64)} stands twice")
        values[key] = value
    return values


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _check_gate(gate: Any, where: str) -> None:
    if not isinstance(gate, dict):
        raise refuse(where, gate, f"an object with {', '.join(sorted(_KEYS))}")
    for key in set(gate) - _KEYS:
        raise refuse(f"{where}.{key}", gate[key], f"no such key; {nearest(key, _KEYS)}")
    name = gate["metric"] if isinstance(gate.get("metric"), str) else ""
    threshold, applies_to = gate.get("threshold", ""), gate.get("applies_to", {})
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    metric, in_range = METRICS.get(name), is_number and abs(threshold) <= LARGEST
    interval = "a metric with an interval; a minimum or maximum has none"
    checks = [
        ("metric", metric, nearest(name, METRICS)),
        ("metric", metric and metric.gated, interval),
        ("op", gate.get("op") in list(_OPS), f"one of {', '.join(_OPS)}"),
        ("threshold", in_range, f"a finite number from {-LARGEST:g} to {LARGEST:g}"),
        *((key, isinstance(gate.get(key, ""), str), "text") for key in ("source", "reason")),
        ("applies_to", isinstance(applies_to, dict), '{"bits": 2} or {"candidate": "GLOB"}'),
    ]
    for key, accepted, words in checks:
        if not accepted:
            raise refuse(f"{where}.{key}", gate.get(key), words)
    for key, value in applies_to.items():
        if key != "candidate":
            check_value(key, value, f"{where}.applies_to.{key}")
        elif not isinstance(value, str) or not value:
            raise refuse(f"{where}.applies_to.{key}", value, "a GLOB of names of candidates")


def applies(gate: dict, name: str, steps: list[dict]) -> bool:
    """Whether a gate concerns a candidate, by a glob of its name and parameters of its steps."""
    required = dict(gate.get("applies_to", {}))
    if not fnmatch.fnmatchcase(name, required.pop("candidate", "*")):
        return False
    parameters = [own for step in steps for own in step.values()]
    return all(any(own.get(key) == value for own in parameters) for key, value in required.items())


def judge_gate(gate: dict, criteria: str, row: dict | None) -> dict[str, Any]:
    """Verdict of one gate on one metric row (None: not measured, so INCONCLUSIVE)."""
    verdict: dict[str, Any] = {"criteria": criteria}
    verdict |= {key: gate.get(key, "") for key in ("metric", "op", "threshold", "source", "reason")}
    verdict |= {"bound": None, "verdict": INCONCLUSIVE, "needed_n": None}
    if row is None:
        return verdict
    value, low, high = row["value"], row["low"], row["high"]
    if value is None:  # scores that define no value fail, unless the baseline's define none either
        return verdict | {"verdict": INCONCLUSIVE if row["baseline"] is None else FAIL}
    if row.get("why"):
        return verdict | {"needed_n": row["needed_n"]}
    if low is None and high is None:  # exact
        low = high = value
    meets, threshold = _OPS[gate["op"]], gate["threshold"]
    bound, other = (low, high) if gate["op"] in (">=", ">") else (high, low)
    verdict["bound"] = bound
    if bound is not None and meets(bound, threshold):
        return verdict | {"verdict": PASS}
    if other is not None and not meets(other, threshold):
        return verdict | {"verdict": FAIL}
    if bound is None:
        return verdict | {"needed_n": items_for_percentile(0.01)}
    if margin := value - threshold:
        # Widths shrink as 1/sqrt(n); only a bound beyond the threshold has to come closer.
        beyond = [end for end in (low, high) if (end - threshold) * margin <= 0]
        width = max(abs(value - end) for end in beyond)
        verdict["needed_n"] = math.ceil(row["n"] * (width / margin) ** 2)
    return verdict


def judge(
    name: str, steps: list, rows: list[dict], figures: dict, criteria: dict, broken: bool = False
) -> dict[str, Any]:
    """gates (of the first criteria), claims (of the others), verdict and grade of one candidate.

    steps: dicts of parameters by kind. figures: exact values. criteria: content by name. broken: a stage did not finish, so
    the verdict and gates without a measurement are NOT MEASURED.
    """
    by_name = {row["name"]: row for row in rows}
    for figure in FIGURES:
        if (value := figures.get(figure)) is not None:
            by_name[figure] = {"value": value, "low": None, "high": None, "n": 1}
    judged = [
        judge_gate(gate, source, by_name.get(gate["metric"]))
        for source, content in criteria.items()
        for gate in content["gates"]
        if applies(gate, name, steps)
    ]
    for gate in judged:
        if broken and gate["bound"] is None:
            gate["verdict"] = NOT_MEASURED
    gates = [gate for gate in judged if gate["criteria"] == next(iter(criteria))]
    return {
        "gates": gates,
        "claims": judged[len(gates) :],
        "verdict": NOT_MEASURED if broken else overall([gate["verdict"] for gate in gates]),
        "grade": None if broken else grade(gates),
    }


def overall(verdicts: Sequence[str | None]) -> str:
    """The worst of FAIL, NOT MEASURED, INCONCLUSIVE and PASS; INCONCLUSIVE without any verdict."""
    return next((v for v in _WORST_FIRST if v in verdicts), PASS if verdicts else INCONCLUSIVE)


def grade(gates: list[dict]) -> str | None:
    """A-F by GRADE_RULE; None where no gate applies."""
    return max(map(_grade_gate, gates), default=None)


def _grade_gate(gate: dict) -> str:
    if gate["verdict"] == INCONCLUSIVE:
        return "C"
    if gate["bound"] is None:
        return "F"
    passed, perfect = gate["verdict"] == PASS, METRICS[gate["metric"]].perfect
    if perfect is None or gate["threshold"] == perfect:  # no loss to share out, as for a size
        return "A" if passed else "F"
    share = (gate["bound"] - perfect) / (gate["threshold"] - perfect)
    if passed:
        return "A" if share <= 0.5 else "B"
    return "D" if abs(share) <= 2 else "F"


def standing(candidate: dict) -> str | None:
    """A candidate's verdict; NOT MEASURED where it broke, which older files call FAIL."""
    return candidate.get("verdict") if candidate.get("status") == "ok" else NOT_MEASURED


def run_verdict(candidates: list[dict], release: list[str]) -> str:
    """Verdict of a run: that of its release candidates together (`overall`)."""
    judged = [standing(candidate) for candidate in candidates if candidate["name"] in release]
    if not judged:
        raise InputError("release = []: at least one candidate")
    return overall(judged)
