"""Gates by use: the worst domain decides, what has no evidence does not, and a worse candidate never has the better grade."""

import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import board
from support.reports import entry

from kerf.core.errors import InputError
from kerf.core.paths import root
from kerf.evaluate import criteria, gates
from kerf.evaluate.metrics import METRICS
from kerf.workbench.report import exports
from kerf.workbench.report.exports import checklist
from kerf.workbench.report.junit import junit
from kerf.workbench.report.known_issues import issues
from kerf.workbench.report.page import render_index, render_report
from kerf.workbench.run import experiment, plan

SHIPPED = {
    name: criteria.read_criteria(root() / "data" / "criteria" / f"{name}.json")
    for name in ("encoder", "causal", "reranker")
}
LOSS = {"metric": "ndcg_10_loss", "op": "<=", "threshold": 0.02, "use": "re-index"}
COSINE = {"metric": "cosine_mean", "op": ">=", "threshold": 0.94, "use": "drop-in"}


def row(name, value, half=0.005, domain=None, **more):
    ends = {"low": value - half, "high": value + half}
    return {"name": name, "domain": domain, "value": value, **ends, "n": 400, **more}


def judged(rows, *own, use=(), **content):
    return gates.judge("a", [], rows, {}, {"mine": {"gates": list(own), **content}}, use)


def test_the_worst_domain_decides_and_is_named():
    good, bad = (row("ndcg_10_loss", v, domain=d) for v, d in ((0.0, "docs"), (0.04, "questions")))
    for rows in ([good, bad], [bad, good]):
        (gate,) = judged(rows, LOSS)["gates"]
        assert (gate["verdict"], gate["domain"]) == ("FAIL", "questions")
    unsure = row("ndcg_10_loss", 0.019, domain="own")
    (gate,) = judged([good, unsure], LOSS)["gates"]
    assert (gate["verdict"], gate["domain"], gate["needed_n"]) == ("INCONCLUSIVE", "own", 10_000)
    assert judged([good], LOSS)["verdict"] == "PASS"


def test_what_has_no_evidence_neither_passes_nor_fails():
    chance = row("ndcg_10_loss", 0.5, domain="mmlu", evidence=False)
    (gate,) = judged([chance], LOSS)["gates"]
    assert gate["verdict"] == "INCONCLUSIVE" and "no evidence" in gate["why"]
    assert judged([chance, row("ndcg_10_loss", 0.0, domain="piqa")], LOSS)["verdict"] == "PASS"


def test_a_verdict_is_that_of_the_uses_that_are_asked_for():
    rows = [row("ndcg_10_loss", 0.0), row("cosine_mean", 0.5)]
    everywhere = {"metric": "cosine_mean", "op": ">=", "threshold": 0.4}  # holds for every use
    found = judged(rows, LOSS, COSINE, everywhere)
    assert found["uses"] == {"re-index": "PASS", "drop-in": "FAIL"}
    assert (found["verdict"], found["grade"]) == ("PASS", "B")
    assert [gate["decides"] for gate in found["gates"]] == [True, False, True]
    assert judged(rows, LOSS, COSINE, use=["drop-in"])["verdict"] == "FAIL"
    both = judged(rows, LOSS, COSINE, use=["re-index", "drop-in"])
    assert both["verdict"] == "FAIL" and both["grade"] == "F"
    assert judged(rows, {**everywhere, "threshold": 0.6})["uses"] == {}
    assert judged(rows, {**everywhere, "threshold": 0.6}, LOSS)["uses"] == {"re-index": "FAIL"}


def test_what_broke_is_not_measured_for_any_use():
    asked = {"mine": {"gates": [LOSS, COSINE]}}
    found = gates.judge("a", [], [], {}, asked, broken=True)
    assert found["uses"] == {"re-index": "NOT MEASURED", "drop-in": "NOT MEASURED"}


def test_rows_of_a_metric_stand_together_the_worst_first():
    rows = [row("cosine_mean", 0.9, domain="a"), row("kl_mean", 0.1, domain="a")]
    rows += [row("cosine_mean", 0.8, domain="b"), row("kl_mean", 0.2, domain="b")]
    rows += [row("cosine_mean", 0.1, domain="c", evidence=False)]
    assert [(r["name"], r["domain"]) for r in gates.worst_first(rows)] == [
        *(("cosine_mean", domain) for domain in "bac"),
        *(("kl_mean", domain) for domain in "ba"),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use": "Drop in"}, "mine.gates.0.use"),
        ({"use": 3}, "mine.gates.0.use"),
        ({"use": "drop-inn"}, "did you mean drop-in"),
    ],
)
def test_a_wrong_use_of_a_gate_is_refused(tmp_path, change, said):
    path = tmp_path / "mine.json"
    content = {"schema": 1, "uses": {"drop-in": "x"}, "gates": [{**COSINE, **change}]}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="mine.gates.0.use") as refusal:
        criteria.read_criteria(path)
    assert said in str(refusal.value)


def test_the_published_rule_stands_for_drop_in():
    rule = {(g["metric"], g["op"], g["threshold"]) for g in of_use("encoder", "drop-in")}
    assert rule == {
        ("drop_in_ndcg_10_ratio", ">=", 0.95),
        ("drop_in_ndcg_10_loss", "<=", 0.02),
        ("cosine_mean", ">=", 0.94),
        ("drop_in_overlap_10", ">=", 0.75),
    }


def test_tasks_are_equivalent_within_a_margin_on_both_sides():
    limits = [g for g in of_use("causal", "general-use") if g["metric"] == "task_accuracy_loss"]
    verdicts = [
        judged([row("task_accuracy_loss", loss, 0.01)], *limits, uses={"general-use": ""})
        for loss in (0.0, 0.05, -0.05, 0.025)
    ]
    assert [v["verdict"] for v in verdicts] == ["PASS", "FAIL", "FAIL", "INCONCLUSIVE"]


def of_use(name, use):
    return [gate for gate in SHIPPED[name]["gates"] if gate["use"] == use]


USES = [(name, use) for name in SHIPPED for use in SHIPPED[name]["uses"]]
# Equivalence is two-sided: there the smaller change is the better one, so that only losses are compared.
ONE_SIDED = {
    (name, use): {g["metric"]: METRICS[g["metric"]] for g in of_use(name, use)}
    for name, use in USES
}


@pytest.mark.parametrize(("name", "use"), USES)
@given(data=st.data())
def test_a_candidate_that_is_worse_in_every_figure_has_no_better_grade(name, use, data):
    """Of every metric in every domain value and bounds are worse, by any amount and with any interval."""
    better, worse = [], []
    for metric in ONE_SIDED[name, use].values():
        sign = -1 if metric.better == "lower" else 1
        for domain in ("docs", "news"):
            losses = sorted(data.draw(st.lists(st.floats(0, 0.5), min_size=6, max_size=6)))
            # Value, optimistic and pessimistic bound of both, interleaved in any order that keeps `worse` worse.
            ends = {"better": losses[0:3], "worse": losses[3:6]}
            if data.draw(st.booleans()):
                ends = {"better": losses[0::2], "worse": losses[1::2]}
            for rows, key in ((better, "better"), (worse, "worse")):
                best, value, last = (metric.perfect - sign * loss for loss in ends[key])
                low, high = min(best, last), max(best, last)
                rows.append(row(metric.name, value, domain=domain) | {"low": low, "high": high})
    grades = [
        gates.judge("a", [], rows, {}, {name: SHIPPED[name]}, [use])["grade"]
        for rows in (better, worse)
    ]
    assert grades[0] <= grades[1]


def shipped_runs():
    kept = sorted((root() / "docs" / "runs").glob("*.json"))
    return kept + sorted((root() / "tests" / "data").rglob("results.json"))


@pytest.mark.parametrize("path", shipped_runs(), ids=lambda path: path.parent.name + path.stem)
def test_in_no_shipped_run_has_the_worse_candidate_the_better_grade(path):
    """Worse: every figure that the use judges and the run measured is farther from the baseline's."""
    run = json.loads(path.read_text())
    name = {"cross_encoder": "reranker"}.get(run["model"]["kind"], run["model"]["kind"])
    compared = 0
    for use in SHIPPED[name]["uses"]:
        metrics = {gate["metric"] for gate in of_use(name, use)}
        found = {}
        for candidate in run["candidates"][1:]:
            rows = [r for r in candidate["metrics"] if r["name"] in metrics]
            losses = {(r["name"], r.get("domain")): loss(r) for r in rows if r["value"] is not None}
            graded = gates.judge("a", [], rows, candidate, {name: SHIPPED[name]}, [use])["grade"]
            found[candidate["name"]] = losses, graded
        for (one, (first, grade)), (other, (second, worse)) in permutations(found.items(), 2):
            if first and first.keys() == second.keys() and all(first[k] < second[k] for k in first):
                compared += 1
                assert grade <= worse, (use, one, grade, other, worse)
    assert compared


def loss(row):
    metric = METRICS[row["name"]]
    return (metric.perfect - row["value"]) * (-1 if metric.better == "lower" else 1)


def run_of_uses(folder, *named, **more):
    """A page of made-up candidates, judged by the shipped criteria."""
    rows = {
        "good": [row("cosine_mean", 0.99, domain=d) for d in ("docs", "news")],
        "bad": [row("cosine_mean", v, domain=d) for d, v in (("docs", 0.8), ("news", 0.95))],
        "unsure": [row("cosine_mean", 0.945, 0.01, domain=d) for d in ("docs", "news")],
    }
    asked = {"encoder": {"uses": {"drop-in": "the index stays", "re-index": ""}, "gates": []}}
    asked["encoder"]["gates"] = [COSINE, {**LOSS, "metric": "cosine_p01", "op": ">="}]
    made = [entry("baseline", "PASS", 1.0, steps=[], gates=[], uses={"drop-in": "PASS"}, layers=[])]
    for name, own in rows.items():
        found = gates.judge(name, [], own, {}, asked, named)
        own = [r | {"baseline": 1.0, "unit": "", "noise": {"low": 1.0, "high": 1.0}} for r in own]
        made.append(entry(name, "", 1.0, metrics=own) | found)
    results = board.run_of(candidates=made, release=["good"], use=list(named), **more)
    results["uses"] = asked["encoder"]["uses"]
    return render_report(results, folder / "page", {}).read_text(), made


def test_the_first_table_has_a_column_a_use_and_says_what_decided(tmp_path):
    text, _ = run_of_uses(tmp_path, "drop-in")
    table = text[text.index("<table") : text.index("</table>")]
    assert "Drop-in<small>decides the verdict</small>" in table and ">Re-index</th>" in table
    assert "Mean cosine on docs" in table  # the worst domain of the one that failed
    assert "1,200 more sentences on docs" in table  # of 1,600 with four times the interval
    assert "For drop-in: good, the one candidate meant for release, may be used." in text
    assert "closest: mean cosine on docs must be at least 0.94, measured 0.990" in text
    assert "the index stays" in text and "not measured" in table


def test_gates_of_other_uses_neither_redden_nor_tick_a_release(tmp_path):
    _, (baseline, good, *_) = run_of_uses(tmp_path, "drop-in")
    assert good["verdict"] == "PASS" and good["uses"]["re-index"] == "INCONCLUSIVE"
    results = {"experiment": "x", "candidates": [baseline, good], "release": ["good"]}
    xml = junit(results | {"criteria": ["encoder"]})
    assert "drop-in: cosine_mean" in xml and "failure" not in xml.replace('failures="0"', "")
    assert not [line for line in issues(good) if line.startswith("Gate")]
    assert "Not for other uses: re-index (not decided)." in issues(good)
    boxes = [text for _, text in checklist(good)]
    assert any("Mean cosine on docs" in box for box in boxes) and not any("1st" in b for b in boxes)


def test_the_board_says_what_a_candidate_may_be_used_for(tmp_path):
    _, made = run_of_uses(tmp_path, "drop-in")
    board.write(tmp_path / "grid", board.run_of(candidates=made, release=["good"]))
    text = render_index(tmp_path).read_text()
    assert "usable for drop-in" in text and "0.800" in text  # the worst domain is the headline


def test_criteria_of_another_family_are_refused_before_any_work(monkeypatch, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: m\ncandidates: {a: [{quantize: {bits: 8}}]}\ncriteria: [encoder]\n")
    monkeypatch.setattr(plan.corpora, "digest", lambda _: "0")
    monkeypatch.setattr(plan.registry, "describe", lambda _: {"kind": "causal", "bytes": 1})
    with pytest.raises(
        InputError, match="criteria = 'encoder': causal or a file of your own: m is"
    ):
        plan.check(experiment.read(str(path)), tmp_path)


def test_a_run_from_before_uses_and_with_a_metric_that_is_gone_still_renders(tmp_path):
    (path,) = (root() / "tests" / "data").rglob("results.json")
    results = json.loads(path.read_text())
    gone = row("cosine_gone", 0.5) | {"baseline": 1.0}
    for candidate in results["candidates"]:
        candidate["metrics"].append(gone)
    text = render_report(results, tmp_path, {}).read_text()
    exports.write(results, tmp_path)
    assert (
        ">May it be used?</th>" in text and "cosine_gone" in (tmp_path / "release.md").read_text()
    )
