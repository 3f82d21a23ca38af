"""Candidates from several calibration samples: each draw is measured, and one that breaks leaves the candidate as it is."""

import json

import pytest
from support.small import write_model

from kerf.workbench import cli
from kerf.workbench.run import notebook_stage, runner

TEXT = """model: {model}
calibration: {{samples: 24, max_length: 32, draws: 3}}
evaluation: {{texts: [news, everyday], sentences: 30, retrieval: [docs], queries: 30, passages: 20, classification: []}}
candidates: {{int3: [{{quantize: {{method: gptq, bits: 3, group_size: 32}}}}]}}
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """results.json of a run whose third draw breaks, its exit code and its folder."""
    place = tmp_path_factory.mktemp("draws")
    (place / "small.yaml").write_text(TEXT.format(model=write_model(place / "model")))
    stage_of = runner.run_stage

    def run_stage(notebook, values, inputs, partial):
        if partial.name == "compare.draw-3.partial.ipynb":
            raise notebook_stage.StageFailed("compare.ipynb", 4, "no memory")
        return stage_of(notebook, values, inputs, partial)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_stage", run_stage)
        code = cli.main(["run", str(place / "small.yaml"), "--out", str(place / "out")])
    report = place / "out" / "reports" / "small"
    return json.loads((report / "results.json").read_text()), code, report


def test_every_metric_has_the_values_of_all_draws(drawn):
    results, code, report = drawn
    candidate = results["candidates"][1]
    assert code == 0 and candidate["status"] == "ok" and candidate["error"] is None
    cosines = [row for row in candidate["metrics"] if row["name"] == "cosine_mean"]
    assert {row["domain"] for row in cosines} == {"news", "everyday"}
    for row in cosines:
        first, second, broken = row["draws"]
        assert first == row["value"] != second and broken is None
        assert abs(first - second) < 0.2  # both are of 3 bits
    assert (report / "int3" / "quantize.draw-2.ipynb").is_file()
    assert "other draws" in (report / "index.html").read_text()


def test_a_row_says_whether_calibration_saw_its_family(drawn):
    results, *_ = drawn
    rows = results["candidates"][1]["metrics"]
    seen = {row["domain"]: (row["family"], row["seen"]) for row in rows if row["domain"]}
    assert seen == {
        "news": ("news", True),
        "everyday": ("everyday", False),
        "docs": ("technical", False),
    }
