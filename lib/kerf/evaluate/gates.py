"""Gates: thresholds that a candidate's metrics have to meet at their confidence bounds, for each use.

A gate passes when the whole interval meets its threshold, fails when no part of it does, and is otherwise INCONCLUSIVE,
with the number of items that would decide. Of several domains the worst decides. A candidate whose stage broke is
NOT MEASURED, which is no failure.
"""

import fnmatch
import math
from collections.abc import Sequence
from typing import Any

from kerf.core.errors import InputError
from kerf.evaluate.criteria import OPS, uses_of
from kerf.evaluate.metrics import FIGURES, METRICS
from kerf.evaluate.stats import items_for_percentile

PASS, FAIL, INCONCLUSIVE, NOT_MEASURED = "PASS", "FAIL", "INCONCLUSIVE", "NOT MEASURED"
_WORST_FIRST = (FAIL, NOT_MEASURED, INCONCLUSIVE, PASS)
_UPWARD = (">=", ">")
GRADE_RULE = (
    "Grade: the share of the allowed loss that the worst gate uses, taken at the confidence bound. "
    "A: at most 50 %; B: at most 100 %; C: at most 150 %, or no bound; D: at most 200 %; F: more."
)
NO_EVIDENCE = "no evidence: the baseline itself is not clearly above chance"


def applies(gate: dict, name: str, steps: list[dict]) -> bool:
    """Whether a gate concerns a candidate, by a glob of its name and parameters of its steps."""
    required = dict(gate.get("applies_to", {}))
    if not fnmatch.fnmatchcase(name, required.pop("candidate", "*")):
        return False
    parameters = [own for step in steps for own in step.values()]
    return all(any(own.get(key) == value for own in parameters) for key, value in required.items())


def judge_gate(gate: dict, criteria: str, row: dict | None) -> dict[str, Any]:
    """Verdict of one gate on one metric row (None: not measured, so INCONCLUSIVE)."""
    verdict: dict[str, Any] = {"criteria": criteria, "use": gate.get("use")}
    verdict |= {key: gate.get(key, "") for key in ("metric", "op", "threshold", "source", "reason")}
    verdict |= {"bound": None, "verdict": INCONCLUSIVE, "needed_n": None, "domain": None}
    if row is None:
        return verdict
    verdict["domain"] = row.get("domain")
    value, low, high = row["value"], row["low"], row["high"]
    if value is None:  # scores that define no value fail, unless the baseline's define none either
        return verdict | {"verdict": INCONCLUSIVE if row["baseline"] is None else FAIL}
    if row.get("why"):
        return verdict | {"needed_n": row["needed_n"]}
    if low is None and high is None:  # exact
        low = high = value
    meets, threshold = OPS[gate["op"]], gate["threshold"]
    bound, other = (low, high) if gate["op"] in _UPWARD else (high, low)
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


def judge_domains(gate: dict, criteria: str, rows: Sequence[dict]) -> dict[str, Any]:
    """Verdict of one gate on the rows of its metric, one a domain: the worst. Rows without evidence do not count."""
    counted = [row for row in rows if row.get("evidence") is not False]
    if not counted:
        return judge_gate(gate, criteria, None) | ({"why": NO_EVIDENCE} if rows else {})
    sign = 1 if gate["op"] in _UPWARD else -1

    def goodness(judged: dict) -> tuple[int, float]:
        bound = -math.inf if judged["bound"] is None else sign * judged["bound"]
        return _WORST_FIRST.index(judged["verdict"]), bound

    judged = [judge_gate(gate, criteria, row) for row in counted]
    # An undecided domain may have a worse bound than one that surely fails, and the grade is about bounds.
    shares = [used for each in judged if (used := share(each)) is not None]
    return min(judged, key=goodness) | {"share": max(shares, default=None)}


def worst_first(rows: Sequence[dict]) -> list[dict]:
    """Metric rows with those of one name together, the worst domain first and those without evidence last."""
    place = {row["name"]: number for number, row in reversed(list(enumerate(rows)))}

    def order(row: dict) -> tuple[int, bool, float]:
        metric = METRICS[row["name"]]
        lower = metric.better == "lower"
        end = row["high" if lower else "low"]
        end = row["value"] if end is None else end
        if (
            metric.perfect is None and end is not None
        ):  # domains differ in what the baseline reaches
            end -= row["baseline"] or 0.0
        goodness = -math.inf if end is None else -end if lower else end
        return place[row["name"]], row.get("evidence") is False, goodness

    return sorted(rows, key=order)


def judge(
    name: str,
    steps: list,
    rows: list[dict],
    figures: dict,
    criteria: dict,
    use: Sequence[str] = (),
    broken: bool = False,
) -> dict[str, Any]:
    """gates (of the first criteria), claims (of the others), uses, verdict and grade of one candidate.

    steps: dicts of parameters by kind. figures: exact values. criteria: content by name. use: what decides verdict and grade
    (default: the first of the criteria). broken: a stage did not finish, so that what was not measured is NOT MEASURED.
    """
    by_name: dict[str, list[dict]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    for figure in FIGURES:
        if (value := figures.get(figure)) is not None:
            by_name[figure] = [{"value": value, "low": None, "high": None, "n": 1}]
    judged = [
        judge_domains(gate, source, by_name.get(gate["metric"], ()))
        for source, content in criteria.items()
        for gate in content["gates"]
        if applies(gate, name, steps)
    ]
    for gate in judged:
        if broken and gate["bound"] is None:
            gate["verdict"] = NOT_MEASURED
    deciding = next(iter(criteria))
    known = list(uses_of(criteria[deciding]))
    asked, gates = list(use) or known[:1], [g for g in judged if g["criteria"] == deciding]
    for gate in gates:
        gate["decides"] = gate["use"] is None or gate["use"] in asked
    uses = {key: _verdict_for(key, gates, broken) for key in known}
    verdicts = [uses[key] for key in asked if key in uses] or [_verdict_for(None, gates, broken)]
    return {
        "gates": gates,
        "claims": judged[len(gates) :],
        "uses": uses,
        "verdict": overall(verdicts),
        "grade": None if broken else grade([gate for gate in gates if gate["decides"]]),
    }


def _verdict_for(use: str | None, gates: list[dict], broken: bool) -> str:
    """The verdict for a use; a gate without one holds for every use."""
    of_use = [gate["verdict"] for gate in gates if gate["use"] in (None, use)]
    return NOT_MEASURED if broken else overall(of_use)


def overall(verdicts: Sequence[str | None]) -> str:
    """The worst of FAIL, NOT MEASURED, INCONCLUSIVE and PASS; INCONCLUSIVE without any verdict."""
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), INCONCLUSIVE)


def grade(gates: list[dict]) -> str | None:
    """A-F by GRADE_RULE; None where no gate applies. A worse bound never has a better grade."""
    return max(map(_grade_gate, gates), default=None)


def share(gate: dict) -> float | None:
    """Share of the allowed loss that the bound of a judged gate uses; None without a bound, or where no loss is allowed."""
    bound, threshold = gate["bound"], gate["threshold"]
    metric = METRICS.get(gate["metric"])
    perfect = metric and metric.perfect
    if bound is None or perfect is None or threshold == perfect:
        return None
    return (
        (bound - perfect) / (threshold - perfect) if OPS[gate["op"]](perfect, threshold) else None
    )


def _grade_gate(gate: dict) -> str:
    used = gate["share"] if "share" in gate else share(gate)
    passed, bounded = gate["verdict"] == PASS, gate["bound"] is not None
    if not bounded and gate["verdict"] != INCONCLUSIVE:
        return "F"
    if used is None:  # nothing bounds the loss, or there is none to share out, as for a size
        return "A" if passed else "F" if bounded else "C"
    if passed:
        return "A" if used <= 0.5 else "B"
    return "C" if used <= 1.5 else "D" if used <= 2 else "F"


def standing(candidate: dict) -> str | None:
    """A candidate's verdict; NOT MEASURED where it broke, which older files call FAIL."""
    return candidate.get("verdict") if candidate.get("status") == "ok" else NOT_MEASURED


def run_verdict(candidates: list[dict], release: list[str]) -> str:
    """Verdict of a run: that of its release candidates together (`overall`)."""
    judged = [standing(candidate) for candidate in candidates if candidate["name"] in release]
    if not judged:
        raise InputError("release = []: at least one candidate")
    return overall(judged)
