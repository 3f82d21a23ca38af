"""What broke is NOT MEASURED wherever a run is read, and no failure of a candidate."""

import json
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from support.exports import BROKEN, entry, gate
from support.exports import run as run_of
from support.small import write_model

from kerf.workbench import cli
from kerf.workbench.report import junit, leaderboard
from kerf.workbench.report.answers import answer
from kerf.workbench.report.known_issues import issues
from kerf.workbench.report.page import render_report
from kerf.workbench.run import notebook_stage, results, runner


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run whose baseline breaks: its exit code and its folder."""
    place = tmp_path_factory.mktemp("broken")
    text = f"""model: {write_model(place / "model")}
calibration: {{samples: 24}}
evaluation: {{texts: [news, everyday], sentences: 40, retrieval: [news], queries: 40, passages: 40, classification: []}}
candidates: {{int8: [{{quantize: {{bits: 8}}}}], int4: [{{quantize: {{bits: 4}}}}]}}
release: [int8]
criteria: [encoder]
"""
    (place / "small.yaml").write_text(text)

    def fails(name, *_):
        raise notebook_stage.StageFailed(f"{name}.ipynb", 4, "the kernel died twice (Kernel died)")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_stage", fails)
        code = cli.main(["run", str(place / "small.yaml"), "--out", str(place / "out"), "--gate"])
    return code, place / "out"


def test_a_broken_baseline_leaves_every_candidate_not_measured(broken):
    code, out = broken
    content = json.loads((out / "reports/small/results.json").read_text())
    assert code == 3 and content["verdict"] == "NOT MEASURED"
    assert [(each["status"], each["verdict"], each["grade"]) for each in content["candidates"]] == [
        ("failed", "NOT MEASURED", None),
        ("skipped", "NOT MEASURED", None),
        ("skipped", "NOT MEASURED", None),
    ]
    assert all(each["error"] == content["candidates"][0]["error"] for each in content["candidates"])
    gates = [each for candidate in content["candidates"] for each in candidate["gates"]]
    assert gates and {each["verdict"] for each in gates} == {"NOT MEASURED"}


def test_a_broken_baseline_is_nowhere_called_a_failure_of_the_candidates(broken, capsys):
    _, out = broken
    report = out / "reports/small"
    cases = list(ElementTree.parse(report / "gates.xml").getroot().iter("testcase"))
    assert len(cases) == 3 and all(
        case.find("error") is not None and case.find("failure") is None for case in cases
    )
    for page in (report / "index.html", out / "reports/index.html", report / "release.md"):
        text = page.read_text()
        assert "not measured" in text.lower() and "FAIL" not in text and "✕" not in text, page
    assert not list(report.glob("*/README.md"))
    assert (
        cli.main(["list", "runs", "--out", str(out)]) == 0
        and "NOT MEASURED" in capsys.readouterr().out
    )
    assert cli.main(["ab", "small/int8", "small/int4", "--out", str(out)]) == 2
    assert (
        "a candidate that was measured; it was skipped: the kernel died" in capsys.readouterr().err
    )


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_what_broke_is_an_error_and_no_failure(tmp_path, status):
    bad = entry(
        "bad", [], status=status, error=BROKEN, metrics=[], verdict="FAIL", grade=None
    )  # as older files have it
    content = run_of(entry("good", [gate("PASS")]), bad, release=["good", "bad"])
    assert content["verdict"] == "NOT MEASURED"
    found = ElementTree.fromstring(junit.junit(content).encode())
    assert not list(found.iter("failure")) and [
        each.get("type") for each in found.iter("error")
    ] == ["NOT MEASURED"]
    assert answer(bad, [])["answer"] == "not measured" and "It was not measured" in issues(bad)[0]
    (tmp_path / "small").mkdir()
    text = render_report(
        {**content, "verdict": "FAIL", "grade_rule": "", "texts": []}, tmp_path / "small", {}
    ).read_text()
    assert "1 may be used and 1 could not be measured" in text
    (tmp_path / "small" / "results.json").write_text(json.dumps({**content, "verdict": "FAIL"}))
    (run,) = leaderboard.runs(tmp_path)
    assert run["verdict"] == "NOT MEASURED" and [row["verdict"] for row in run["rows"]][1:] == [
        "PASS",
        "NOT MEASURED",
    ]


def test_a_run_that_ends_while_it_writes_leaves_no_history(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.shutil, "copyfile", interrupted)
    run = SimpleNamespace(
        out=tmp_path, name="small", id=lambda: "run-1", report=tmp_path / "reports/small"
    )
    measured = SimpleNamespace(name="baseline", compared=SimpleNamespace(result=tmp_path))
    with pytest.raises(KeyboardInterrupt):
        results.write(run, {}, [measured, measured])
    assert not [path for path in (tmp_path / "reports/history").rglob("*") if path.name != "small"]
