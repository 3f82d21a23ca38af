"""Verdicts come from bounds, and an undecided one says what would decide."""

import json

import numpy as np
import pytest

from kerf.core.errors import InputError
from kerf.core.paths import root
from kerf.evaluate import criteria, gates


def row(value, low, high, name="cosine_mean", n=100):
    return {"name": name, "value": value, "low": low, "high": high, "n": n}


def gate(threshold, op=">=", metric="cosine_mean"):
    return {"metric": metric, "op": op, "threshold": threshold}


@pytest.mark.parametrize(
    ("low", "high", "op", "threshold", "verdict"),
    [
        (0.8, 0.9, ">=", 0.8, "PASS"),
        (0.79, 0.9, ">=", 0.8, "INCONCLUSIVE"),
        (0.7, 0.79, ">=", 0.8, "FAIL"),
        (0.8, 0.9, ">", 0.8, "INCONCLUSIVE"),
        (0.01, 0.02, "<", 0.03, "PASS"),
        (0.01, 0.04, "<", 0.03, "INCONCLUSIVE"),
        (0.03, 0.04, "<", 0.03, "FAIL"),
        (0.03, 0.03, "<=", 0.03, "PASS"),
        (None, None, ">=", 0.85, "PASS"),
        (None, None, ">=", 0.86, "FAIL"),
    ],
)
def test_the_bound_decides(low, high, op, threshold, verdict):
    value = 0.85 if low is None else (low + high) / 2
    assert gates.judge_gate(gate(threshold, op), "c", row(value, low, high))["verdict"] == verdict


def test_needed_n_decides_when_that_many_are_measured():
    generator = np.random.default_rng(0)

    def measured(n):
        values = generator.normal(0.82, 0.2, n)
        half = 1.96 * 0.2 / n**0.5
        return row(0.82 + 0 * values.mean(), 0.82 - half, 0.82 + half, n=n)

    undecided = gates.judge_gate(gate(0.8), "c", measured(100))
    assert undecided["verdict"] == "INCONCLUSIVE"
    needed = undecided["needed_n"]
    assert gates.judge_gate(gate(0.8), "c", measured(needed + 1))["verdict"] == "PASS"
    assert (
        gates.judge_gate(gate(0.8), "c", measured(int(needed * 0.9)))["verdict"] == "INCONCLUSIVE"
    )


def test_a_value_that_fails_but_not_surely_says_how_many_would_show_it():
    undecided = gates.judge_gate(gate(0.8), "c", row(0.79, 0.75, 0.83))
    assert undecided["verdict"] == "INCONCLUSIVE" and undecided["needed_n"] == 1600


def test_a_missing_bound_asks_for_the_number_that_has_one():
    undecided = gates.judge_gate(
        gate(0.9, metric="cosine_p01"), "c", row(0.95, None, 0.97, "cosine_p01")
    )
    assert undecided["verdict"] == "INCONCLUSIVE" and undecided["needed_n"] == 368


def test_what_was_not_measured_decides_nothing():
    assert gates.judge_gate(gate(0.8), "c", None)["verdict"] == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["PASS", "NOT MEASURED", "FAIL", "INCONCLUSIVE"], "FAIL"),
        (["PASS", "INCONCLUSIVE"], "INCONCLUSIVE"),
        (["INCONCLUSIVE", "NOT MEASURED", "PASS"], "NOT MEASURED"),
        (["PASS"], "PASS"),
        ([], "INCONCLUSIVE"),
    ],
)
def test_the_worst_gate_decides_and_no_gate_decides_nothing(verdicts, expected):
    assert gates.overall(verdicts) == expected


@pytest.mark.parametrize(
    ("bound", "grade"),
    [(0.999, "A"), (0.995, "A"), (0.992, "B"), (0.986, "C"), (0.982, "D"), (0.95, "F")],
)
def test_grades_follow_their_rule(bound, grade):
    assert gates.grade([gates.judge_gate(gate(0.99), "c", row(bound, bound, bound))]) == grade


def test_a_loss_below_zero_is_no_loss():
    judged = gates.judge_gate(gate(0.01, "<", "human_spearman_loss"), "c", row(-0.05, -0.06, -0.04))
    assert gates.grade([judged]) == "A"


def test_a_gate_applies_by_parameters_and_by_name():
    steps = [{"quantize": {"bits": 2, "method": "gptq"}}]
    assert gates.applies({"applies_to": {"bits": 2}}, "x", steps)
    assert not gates.applies({"applies_to": {"bits": 8}}, "x", steps)
    assert gates.applies({"applies_to": {"candidate": "int2-*"}}, "int2-gptq", steps)
    assert not gates.applies({"applies_to": {"candidate": "int2-*", "bits": 3}}, "int2-gptq", steps)
    assert gates.applies({}, "x", [])


def test_a_broken_release_candidate_is_not_measured_and_hides_no_failure():
    verdicts = [
        ("a", "ok", "PASS"),
        ("b", "failed", "FAIL"),
        ("c", "ok", "FAIL"),
        ("d", "ok", "INCONCLUSIVE"),
        ("e", "skipped", "NOT MEASURED"),
    ]
    candidates = [dict(zip(("name", "status", "verdict"), each, strict=True)) for each in verdicts]
    assert gates.run_verdict(candidates, ["a"]) == "PASS"
    for released in (["a", "b"], ["b", "d"], ["e", "d", "a"]):
        assert gates.run_verdict(candidates, released) == "NOT MEASURED"
    assert gates.run_verdict(candidates, ["a", "b", "c", "d", "e"]) == "FAIL"


def test_what_broke_has_no_verdict_and_no_grade():
    found = gates.judge(
        "a", [], [], {}, {"c": {"gates": [gate(0.8)]}, "d": {"gates": [gate(0.9)]}}, broken=True
    )
    assert found["verdict"] == "NOT MEASURED" and found["grade"] is None
    assert [each["verdict"] for each in [*found["gates"], *found["claims"]]] == ["NOT MEASURED"] * 2
    whole = gates.judge("a", [], [], {}, {"c": {"gates": [gate(0.8)]}})
    assert whole["verdict"] == "INCONCLUSIVE"  # nothing broke: the metric does not apply to it


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metric": "cosine_maen"}, "did you mean cosine_mean"),
        ({"metric": "cosine_min"}, "a minimum or maximum has none"),
        ({"op": "=="}, "one of >="),
        ({"threshold": "high"}, "a finite number"),
        ({"treshold": 1}, "did you mean threshold"),
    ],
)
def test_a_wrong_gate_is_refused_by_name(tmp_path, change, named):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"schema": 1, "gates": [{**gate(0.9), **change}]}))
    with pytest.raises(InputError, match="mine.gates.0") as refusal:
        criteria.read_criteria(path)
    assert named in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("path", sorted((root() / "data" / "criteria").glob("*.json")), ids=str)
def test_shipped_criteria_are_valid_and_give_reasons(path):
    content = criteria.read_criteria(path)
    assert content["gates"] and all(g["reason"] and g["source"] for g in content["gates"])
    if "claims" in path.stem:
        return
    uses = criteria.uses_of(content)
    assert all(uses.values()) and {g["use"] for g in content["gates"]} == set(uses)
    assert not any("applies_to" in g for g in content["gates"])  # as strict for 2 bits as for 8
