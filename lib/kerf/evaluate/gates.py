"""Judging: thresholds against confidence bounds.

A gate passes when the whole interval is on the right side of its threshold, fails when the whole
interval is on the wrong side, and is INCONCLUSIVE between; then it says how many items would decide. A
value that is exact (a size) is its own interval. A candidate whose stage broke was NOT MEASURED: that says nothing
about it, least of all that it fails.
"""

import fnmatch
import json
import math
from pathlib import Path

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
_OPS = (">=", ">", "<=", "<")


def find_criteria(name: str) -> Path:
    """Path of a criteria file: a name in data/criteria, or a JSON file. Raises InputError for neither."""
    known = {each.stem: each for each in (shipped() / "data" / "criteria").glob("*.json")}
    path = given_path(name) if name.endswith(".json") else known.get(name)
    if not path or not path.is_file():
        raise refuse("criteria", name, f"a JSON file or a known name: {nearest(name, known)}")
    return path


def read_criteria(path: Path) -> dict:
    """A criteria file, validated. Raises InputError that names the file, the gate and the key."""
    try:
        criteria = json.loads(
            read_text("criteria", path), object_pairs_hook=_once, parse_constant=_no_number
        )
    except InputError:
        raise
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


def _once(pairs: list[tuple[str, object]]) -> dict:
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {printable(key, 64)} stands twice")
        found[key] = value
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _check_gate(gate: object, where: str) -> None:
    known = {"metric", "op", "threshold", "applies_to", "source", "reason"}
    if not isinstance(gate, dict):
        raise refuse(where, gate, f"an object with {', '.join(sorted(known))}")
    for key in set(gate) - known:
        raise refuse(f"{where}.{key}", gate[key], f"no such key; {nearest(key, known)}")
    metric = gate.get("metric")
    if not isinstance(metric, str) or metric not in METRICS:
        raise refuse(
            f"{where}.metric", metric, nearest(metric if isinstance(metric, str) else "", METRICS)
        )
    if not METRICS[metric].gated:
        raise refuse(
            f"{where}.metric", metric, "a metric with an interval; a minimum or maximum has none"
        )
    if gate.get("op") not in _OPS:
        raise refuse(f"{where}.op", gate.get("op"), f"one of {', '.join(_OPS)}")
    threshold = gate.get("threshold")
    if (
        isinstance(threshold, bool)
        or not isinstance(threshold, int | float)
        or not abs(threshold) <= LARGEST
    ):
        raise refuse(
            f"{where}.threshold", threshold, f"a finite number from {-LARGEST:g} to {LARGEST:g}"
        )
    for key in ("source", "reason"):
        if not isinstance(gate.get(key, ""), str):
            raise refuse(f"{where}.{key}", gate[key], "text")
    _check_applies_to(gate.get("applies_to", {}), f"{where}.applies_to")


def _check_applies_to(wanted: object, where: str) -> None:
    if not isinstance(wanted, dict):
        raise refuse(where, wanted, '{"bits": 2} or {"candidate": "GLOB"}')
    for key, value in wanted.items():
        if key == "candidate":
            if not isinstance(value, str) or not value:
                raise refuse(f"{where}.{key}", value, "a GLOB of names of candidates")
        else:
            check_value(key, value, f"{where}.{key}")


def applies(gate: dict, name: str, steps: list[dict]) -> bool:
    """Whether a gate is about a candidate: a glob of its name, or parameters that one of its steps has."""
    wanted = dict(gate.get("applies_to", {}))
    if not fnmatch.fnmatchcase(name, wanted.pop("candidate", "*")):
        return False
    flat = [parameters for step in steps for parameters in step.values()]
    return all(
        any(parameters.get(key) == value for parameters in flat) for key, value in wanted.items()
    )


def judge_gate(gate: dict, criteria: str, row: dict | None) -> dict:
    """Verdict of one gate on one metric row (None: it was not measured, so nothing is decided)."""
    fields = {key: gate.get(key, "") for key in ("metric", "op", "threshold", "source", "reason")}
    verdict = {
        "criteria": criteria,
        **fields,
        "bound": None,
        "verdict": INCONCLUSIVE,
        "needed_n": None,
    }
    if row is None:
        return verdict
    op, threshold, value = gate["op"], gate["threshold"], row["value"]
    if (
        value is None
    ):  # a candidate whose scores define no value has failed, unless the baseline's define none either
        return verdict | {"verdict": INCONCLUSIVE if row["baseline"] is None else FAIL}
    if row.get("why"):
        return verdict | {"needed_n": row["needed_n"]}
    exact = row["low"] is None and row["high"] is None
    low, high = (value, value) if exact else (row["low"], row["high"])
    bound, other = (low, high) if op in (">=", ">") else (high, low)
    verdict["bound"] = bound
    if bound is not None and _holds(bound, op, threshold):
        verdict["verdict"] = PASS
    elif other is not None and not _holds(other, op, threshold):
        verdict["verdict"] = FAIL
    else:
        verdict["needed_n"] = _needed(row, bound, threshold)
    return verdict


def _holds(value: float, op: str, threshold: float) -> bool:
    return {
        ">=": value >= threshold,
        ">": value > threshold,
        "<=": value <= threshold,
        "<": value < threshold,
    }[op]


def _needed(row: dict, bound: float | None, threshold: float) -> int | None:
    """Items after which the interval would clear the threshold if the value stayed: widths shrink as 1/sqrt(n)."""
    if bound is None:
        return items_for_percentile(0.01)
    if row["value"] == threshold:
        return None
    other = row["high"] if bound == row["low"] else row["low"]
    # The side of the interval that reaches over the threshold is the one that has to shrink.
    reach = max(
        abs(row["value"] - side)
        for side in (bound, other)
        if (side - threshold) * (row["value"] - threshold) <= 0
    )
    return math.ceil(row["n"] * (reach / (row["value"] - threshold)) ** 2)


def judge(
    name: str,
    steps: list[dict],
    rows: list[dict],
    figures: dict,
    criteria: dict[str, dict],
    broken: bool = False,
) -> dict:
    """gates (of the first criteria), claims (of the others), verdict and grade of one candidate.

    criteria: name -> content, in order. figures: the candidate's own exact figures. broken: a stage of it did not
    finish, so that gates without a measurement, and the candidate, are NOT MEASURED and there is no grade.
    """
    by_name = {row["name"]: row for row in rows}
    for figure in FIGURES:
        if figures.get(figure) is not None:
            by_name[figure] = {
                "name": figure,
                "value": figures[figure],
                "low": None,
                "high": None,
                "n": 1,
            }
    judged = [
        judge_gate(gate, source, by_name.get(gate["metric"]))
        for source, content in criteria.items()
        for gate in content["gates"]
        if applies(gate, name, steps)
    ]
    first = next(iter(criteria), None)
    if broken:
        judged = [
            gate if gate["bound"] is not None else {**gate, "verdict": NOT_MEASURED}
            for gate in judged
        ]
    gates = [gate for gate in judged if gate["criteria"] == first]
    return {
        "gates": gates,
        "claims": [gate for gate in judged if gate["criteria"] != first],
        "verdict": NOT_MEASURED if broken else overall([gate["verdict"] for gate in gates]),
        "grade": None if broken else grade(gates),
    }


def overall(verdicts: list[str]) -> str:
    """FAIL if any fails, else NOT MEASURED if any broke, else INCONCLUSIVE if any is or there is none, else PASS."""
    return next(
        (verdict for verdict in _WORST_FIRST if verdict in verdicts),
        PASS if verdicts else INCONCLUSIVE,
    )


def grade(gates: list[dict]) -> str | None:
    """A-F by GRADE_RULE; None where no gate applies."""
    return max((_grade_one(gate) for gate in gates), default=None)


def _grade_one(gate: dict) -> str:
    if gate["verdict"] == INCONCLUSIVE:
        return "C"
    perfect = METRICS[gate["metric"]].perfect
    allowed = None if perfect is None else abs(gate["threshold"] - perfect)
    if gate["bound"] is None:
        return "F"
    if not allowed:  # a size or a time: it is met or not, there is no loss to share
        return "A" if gate["verdict"] == PASS else "F"
    share = abs(gate["bound"] - perfect) / allowed
    lost_nothing = (gate["bound"] - perfect) * (gate["threshold"] - perfect) <= 0
    if gate["verdict"] == PASS:
        return "A" if lost_nothing or share <= 0.5 else "B"
    return "D" if share <= 2 else "F"


def standing(candidate: dict) -> str | None:
    """A candidate's verdict; NOT MEASURED where it broke, which older files call FAIL."""
    return candidate.get("verdict") if candidate.get("status") == "ok" else NOT_MEASURED


def run_verdict(candidates: list[dict], release: list[str]) -> str:
    """Verdict of a run: that of its release candidates together (`overall`)."""
    judged = [standing(candidate) for candidate in candidates if candidate["name"] in release]
    if not judged:
        raise InputError("release = []: at least one candidate")
    return overall(judged)
