"""What an earlier version left behind, with its names of keys: candidates load, runs are listed, compared and drawn."""

import hashlib
import json

import pytest

import kerf
from kerf.core.paths import root
from kerf.models import manifest
from kerf.workbench import cli
from kerf.workbench.report.page import render_index
from kerf.workbench.run import history

BEFORE = root() / "tests" / "data" / "before"
WEIGHTS = "e7165dbaa0a639fafe66acb997bdc6ef21f58a3905a599ec0a94160b551bd3c3"  # as that version loaded them


def test_a_candidate_loads_to_the_same_weights():
    folder = BEFORE / "data/runs/before/int4"
    total = hashlib.sha256()
    for name, value in sorted(kerf.load(folder).state_dict().items()):
        total.update(name.encode() + value.numpy().tobytes())
    assert total.hexdigest() == WEIGHTS
    assert manifest.verify(folder)["steps"][0]["quantize"]["floats"] == "float16"


def test_a_history_is_read_with_names_of_today(capsys):
    assert cli.main(["list", "runs", "--json", "--out", str(BEFORE)]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert run["name"].startswith("before/") and "damaged" not in run["about"]
    side = history.find("A", "before/int4", BEFORE)
    assert side.steps == [
        {
            "quantize": {
                "method": "gptq",
                "bits": 4,
                "group_size": 32,
                "unquantized_dtype": "float16",
            }
        }
    ]
    assert (
        side.origin["settings"]["evaluation.num_chunks"] == 4
        and side.origin["settings"]["evaluation.seq_len"] == 64
    )
    assert "evaluation.contexts" not in side.origin["settings"]


def test_its_candidates_are_compared(capsys):
    assert cli.main(["ab", "before/int4", "before/int3", "--json", "--out", str(BEFORE)]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["metrics"]}
    assert rows["kl_mean"]["a"] < rows["kl_mean"]["b"] and rows["bytes_on_disk"]["how"] == "exact"


def test_its_runs_stand_on_the_leaderboard(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "history").symlink_to(BEFORE / "reports" / "history")
    assert "int4" in render_index(tmp_path / "reports").read_text()


@pytest.mark.parametrize("name", ["int4", "int3"])
def test_it_has_the_fields_of_schema_1(name):
    (path,) = (BEFORE / "reports/history/before").glob("*/results.json")
    content = json.loads(path.read_text())
    assert content["schema"] == 1 and name in [each["name"] for each in content["candidates"]]
