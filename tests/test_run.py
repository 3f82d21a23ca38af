"""Whole runs of a small model through `kerf run`: outputs, reuse, failure, a killed kernel, exit codes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from support.small import write_model

import kerf
from kerf.core.digests import sha256
from kerf.core.paths import data_folder, root
from kerf.models import manifest

EXPERIMENT = """
model: {model}
calibration: {{samples: 24}}
evaluation: {{texts: [news, everyday], sentences: 40, retrieval: [news], queries: 40, passages: 40, classification: []}}
candidates:
  int8: [{{quantize: {{bits: 8}}}}]
  int2: [{{quantize: {{method: gptq, bits: 2, group_size: 32}}}}]
release: [int8]
criteria: [{criteria}]
"""
GATES = [
    {"metric": "cosine_mean", "op": ">=", "threshold": 0.95, "applies_to": {"bits": 8}},
    {"metric": "cosine_mean", "op": ">=", "threshold": 0.999999, "applies_to": {"bits": 2}},
]


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "kerf", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kerf_run(*arguments) -> tuple[int, str]:
    process = start("run", *arguments)
    out, err = process.communicate(timeout=600)
    return process.returncode, out + err


def kerf_output(*arguments) -> str:
    process = start(*arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, criteria and an experiment."""
    folder = tmp_path_factory.mktemp("run")
    model = write_model(folder / "model")
    (folder / "mine.json").write_text(json.dumps({"schema": 1, "gates": GATES}))
    text = EXPERIMENT.format(model=model, criteria=folder / "mine.json")
    (folder / "small.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def first(place):
    """A first run, in which a kill -9 hits the kernel that quantizes int8, and the one that tries again; then the run again."""
    process = start("run", place / "small.yaml", "--out", place / "out")
    kill_kernel_of(process, "quantize", after=place / "out/reports/small/baseline/noise.ipynb")
    out, err = process.communicate(timeout=600)
    killed = {"code": process.returncode, "text": out + err, "results": results(place)}
    partial = place / "out/reports/small/int8/quantize.partial.ipynb"
    killed["partial"] = nbformat.read(partial, 4) if partial.exists() else None
    code, text = kerf_run(place / "small.yaml", "--out", place / "out")
    return {"killed": killed, "code": code, "text": text, "results": results(place)}


def kill_kernel_of(process, notebook, after, timeout=300):
    """kill -9 both kernels that try `notebook` once the file `after` is there and the second cell of the first has run."""
    until, killed = time.time() + timeout, set()
    while time.time() < until and process.poll() is None:
        running = (
            list((data_folder() / "cache").glob(f".stage-*/{notebook}.ipynb"))
            if after.exists()
            else []
        )
        if running and '"execution_count": 2' in running[0].read_text():
            alive = [
                c
                for c in psutil.Process(process.pid).children()
                if c.status() != psutil.STATUS_ZOMBIE
            ]
            nursery = next(child for child in alive if "serve" in child.cmdline())
            for kernel in {each.pid for each in nursery.children()} - killed:
                os.kill(kernel, signal.SIGKILL)
                killed.add(kernel)
            if len(killed) == 2:
                return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def results(place, experiment="small") -> dict:
    return json.loads((place / "out/reports" / experiment / "results.json").read_text())


def candidate(content, name) -> dict:
    return next(each for each in content["candidates"] if each["name"] == name)


def test_a_killed_kernel_stops_its_candidate_alone(first):
    killed = first["killed"]
    assert killed["code"] == 3
    broken, whole = (candidate(killed["results"], name) for name in ("int8", "int2"))
    assert broken["status"] == "failed" and broken["error"]["notebook"] == "quantize.ipynb"
    assert "died" in broken["error"]["message"] and broken["error"]["message"] in killed["text"]
    assert whole["status"] == "ok" and whole["metrics"]
    assert (
        killed["results"]["verdict"] == broken["verdict"] == "NOT MEASURED"
        and broken["grade"] is None
    )


def test_a_killed_kernel_leaves_a_marked_partial_notebook(first):
    partial = first["killed"]["partial"]
    assert partial.metadata["kerf"]["status"] == "failed"
    assert partial.cells[0].source.startswith("**This notebook did not finish.**")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_killed_run_leaves_no_process_behind(place, how):
    """What nobody waits for any more would take the machine's cores from the next run."""
    process = start("run", place / "small.yaml", "--fresh", "--out", place / "killed")
    until, family = time.time() + 120, []
    while time.time() < until and not any("join" in each for each in family_commands(family)):
        family = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    time.sleep(1)  # until the kernel is busy
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert len(family) >= 3 and not alive  # the nursery, its kernel, and who asked for it


def family_commands(family) -> list[list[str]]:
    commands = []
    for each in family:
        with contextlib.suppress(psutil.Error):
            commands.append(each.cmdline())
    return commands


def test_the_next_run_goes_on_from_the_last_finished_stage(first, place):
    assert first["code"] == 0
    stages = first["results"]["manifest"]["stages"]
    run, earlier = (
        first["results"]["manifest"]["run"],
        first["killed"]["results"]["manifest"]["run"],
    )
    assert {stage["run"] for stage in stages} == {
        run,
        earlier,
    }  # every number names the run that made it
    reused = {stage["name"]: stage["reused"] for stage in stages}
    assert reused.pop("int8/quantize") is False and reused.pop("int8/compare") is False
    assert reused and all(reused.values())
    assert not (place / "out/reports/small/int8/quantize.partial.ipynb").exists()


def test_results_hold_the_contract(first, place):
    content = first["results"]
    assert (
        content["schema"] == 1 and content["experiment"] == "small" and content["verdict"] == "PASS"
    )
    assert [each["name"] for each in content["candidates"]] == ["baseline", "int8", "int2"]
    assert content["candidates"][0]["steps"] == [] and content["candidates"][0]["verdict"] == "PASS"
    int8 = candidate(content, "int8")
    folder = place / "out/data/runs/small/int8"
    sizes = manifest.size(folder)
    assert (
        int8["bytes_on_disk"]
        == sizes["bytes_on_disk"]
        == (folder / "weights.parquet").stat().st_size
    )
    assert int8["bits_per_weight"] == pytest.approx(
        8 * sizes["bytes_on_disk"] / content["model"]["parameters"]
    )
    assert int8["compression_ratio"] == pytest.approx(
        content["model"]["bytes"] / sizes["bytes_on_disk"]
    )
    assert int8["parameters"]["bits"] == {"value": 8, "from": "experiment"}
    assert int8["parameters"]["clip"] == {"value": "none", "from": "default"}
    assert int8["coverage"]["share"] >= 0.95 and int8["partial"] is False
    assert int8["kernel"] == "dequantized" and int8["compress_seconds"] > 0
    for metric in int8["metrics"]:
        assert {"name", "value", "low", "high", "baseline", "n", "unit", "noise"} <= set(metric)
    names = {metric["name"] for metric in int8["metrics"]}
    assert {
        "cosine_mean",
        "cosine_p01",
        "human_spearman_loss",
        "retrieval_mrr",
        "rss_peak_bytes",
        "load_seconds",
    } <= names
    (gate,) = int8["gates"]
    assert gate["verdict"] == "PASS" and gate["bound"] >= gate["threshold"]
    assert candidate(content, "int2")["verdict"] == "FAIL"
    assert content["settings"]["calibration.samples"] == {"value": 24, "from": "experiment"}
    assert content["settings"]["calibration.seed"] == {"value": 0, "from": "default"}
    assert {"kerf", "python", "packages", "cpu", "seed", "data", "started", "seconds"} <= set(
        content["manifest"]
    )


def test_every_stage_has_its_notebook_and_page(first, place):
    report = place / "out/reports/small"
    for each in first["results"]["candidates"]:
        for path in each["notebooks"].values():
            assert (report / path).is_file() and (report / path).with_suffix(".html").is_file()
    page = (report / "index.html").read_text()
    for each in first["results"]["candidates"]:
        assert all(
            Path(path).with_suffix(".html").as_posix() in page
            for path in each["notebooks"].values()
        )
    assert "small/index.html" in (place / "out/reports/index.html").read_text()


def test_history_keeps_both_runs_with_scores_by_item(first, place):
    history = list((place / "out/reports/history/small").iterdir())
    assert len(history) == 2 and all((run / "results.json").is_file() for run in history)
    assert any((run / "int8.parquet").is_file() for run in history)


def test_what_others_take_lies_beside_the_report(first, place):
    report = place / "out/reports/small"
    page = (report / "index.html").read_text()
    for name in ("gates.xml", "release.md", "int8/README.md"):
        assert (report / name).is_file() and f'href="{name}"' in page
    assert not (report / "int2/README.md").exists()  # not for release


def test_candidates_of_a_run_are_paired_with_each_other_and_with_the_baseline(first, place):
    for other in ("int2", "baseline"):
        found = json.loads(
            kerf_output("ab", f"small/{other}", "small/int8", "--json", "--out", place / "out")
        )
        winners = {row["name"]: row["winner"] for row in found["metrics"]}
        assert winners["similarity_spearman"] == {"int2": "b", "baseline": "a"}[other]


def test_load_gives_the_class_of_the_baseline_and_its_embeddings(first, place):
    baseline = kerf.open_model(str(place / "model"))
    loaded = kerf.load(place / "out/data/runs/small/int8")
    assert type(loaded) is type(baseline)
    texts = ["A storm crossed the mountains.", "Shares fell."]
    assert (loaded.encode(texts) * baseline.encode(texts)).sum(1) == pytest.approx([1, 1], abs=0.02)


def test_nothing_changed_means_nothing_is_measured_again_and_the_gate_decides_the_exit_code(
    first, place
):
    code, text = kerf_run(place / "small.yaml", "--out", place / "out", "--gate")
    assert code == 0 and "7 of 7 stages reused" in text
    assert all(each["reused"] for each in results(place)["candidates"])
    code, text = kerf_run(
        place / "small.yaml", "--out", place / "out", "--gate", "-p", "release=[int2]"
    )
    assert code == 1 and "FAIL" in text
    code, _ = kerf_run(place / "small.yaml", "--out", place / "out", "-p", "release=[int2]")
    assert code == 0


def test_fresh_makes_the_same_bytes_again(first, place):
    weights = place / "out/data/runs/small/int2/weights.parquet"
    before, metrics = sha256(weights), candidate(first["results"], "int2")["metrics"]
    code, text = kerf_run(
        place / "small.yaml", "--out", place / "fresh", "--fresh", "-p", "release=[int2]"
    )
    assert code == 0 and "0 of 7 stages reused" in text
    assert sha256(place / "fresh/data/runs/small/int2/weights.parquet") == before
    again = json.loads((place / "fresh/reports/small/results.json").read_text())
    quality = [m for m in metrics if m["name"] not in ("rss_peak_bytes", "load_seconds")]
    for old, new in zip(quality, candidate(again, "int2")["metrics"], strict=False):
        assert {k: old[k] for k in ("name", "value", "low", "high")} == {
            k: new[k] for k in ("name", "value", "low", "high")
        }


def test_a_notebook_run_by_hand_gives_the_numbers_of_the_run(first, place, tmp_path, monkeypatch):
    import papermill

    monkeypatch.delenv("KERF_FRESH", raising=False)
    handover = tmp_path / "handover.json"
    monkeypatch.setenv("KERF_HANDOVER", str(handover))
    step = {"method": "gptq", "bits": 2, "group_size": 32}
    sources = data_folder() / "sources"
    monkeypatch.setenv("KERF_DATA", str(tmp_path / "data"))  # nothing that was made before is there
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sources").symlink_to(sources)
    parameters = {"model": str(place / "model"), "samples": 24, "step": step}
    notebook = root() / "notebooks/quantize.ipynb"
    papermill.execute_notebook(
        notebook, tmp_path / "out.ipynb", parameters, progress_bar=False, kernel_name="python3"
    )
    made = Path(json.loads(handover.read_text())["artifact"])
    assert sha256(made / "weights.parquet") == sha256(
        place / "out/data/runs/small/int2/weights.parquet"
    )


def test_model_on_the_command_line_gets_a_folder_of_its_own(first, place):
    other = write_model(place / "other", seed=1)
    code, _ = kerf_run(
        place / "small.yaml",
        "--out",
        place / "out",
        "--model",
        other,
        "-p",
        "evaluation.sentences=30",
    )
    assert code == 0
    (folder,) = [
        path for path in (place / "out/reports").iterdir() if path.name.startswith("small@")
    ]
    content = json.loads((folder / "results.json").read_text())
    assert content["model"]["id"] == str(other) and content["experiment"] == folder.name


def test_a_refusal_leaves_the_report_as_it_was(first, place):
    before = (place / "out/reports/small/index.html").read_bytes()
    code, text = kerf_run(place / "small.yaml", "--out", place / "out", "-p", "int2.group_size=50")
    assert (
        code == 2 and "int2.1.group_size = 50" in text and "these divide: 4, 8, 16, 32, 64" in text
    )
    assert "Traceback" not in text
    assert (place / "out/reports/small/index.html").read_bytes() == before
