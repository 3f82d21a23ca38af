"""Damage to the cache, to candidates and to the history: named or mended, never served. And what killed runs leave behind."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import kerf
from kerf.core import cache
from kerf.core.cache import artifact
from kerf.core.errors import InputError
from kerf.models import manifest
from kerf.workbench.cli import main
from kerf.workbench.report import leaderboard
from kerf.workbench.report.page import render_index
from kerf.workbench.run import history, notebook_stage, runner

METRICS = [
    {"name": "cosine_mean", "value": 0.93, "low": 0.92, "high": 0.94, "baseline": 1.0, "n": 40}
]
DEEP = "[" * 100_000


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_unseen(path: Path) -> None:
    """One bit, with the time of the last change set back."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def linked(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def replaced(path: Path, put) -> None:
    path.unlink()
    put(path)


def edited(path: Path, **change) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


FILE = {  # kinds of damage to any file
    "a bit": flip,
    "a bit, time set back": flip_unseen,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: replaced(path, Path.mkdir),
    "a pipe": lambda path: replaced(path, os.mkfifo),
}
CONTENT = {  # what a file of JSON may hold instead
    **{text: text for text in ("null", "3", "[]", "{}", '"x"', "{", "[{}, {}]", '{"sha256": []}')},
    "nested": DEEP,
    "digits": "1" * 5000,
    "no text": b"\xff\xfe\xff",
}


def put(path: Path, content) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KERF_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("KERF_FRESH", raising=False)
    return tmp_path / "data" / "cache"


def comparison(key="a", count=None):
    """An artifact like that of a comparison; `count` gets an entry each time it is made."""

    def make(folder: Path) -> dict:
        (folder / "metrics.json").write_text(json.dumps(METRICS))
        (folder / "sub").mkdir()
        (folder / "sub" / "items.bin").write_bytes(key.encode() * 1000)
        if count is not None:
            count.append(key)
        return {"seconds": 1.5}

    return artifact("comparison", {"key": key, "steps": (1, 2)}, make, code=[Path(__file__)])


CACHE = {
    **{
        f"metrics.json: {name}": (lambda folder, do=do: do(folder / "metrics.json"))
        for name, do in FILE.items()
    },
    **{
        f"meta.json: {name}": (lambda folder, do=do: do(folder / "meta.json"))
        for name, do in FILE.items()
    },
    **{
        f"meta.json: {name}": (lambda folder, text=text: put(folder / "meta.json", text))
        for name, text in CONTENT.items()
    },
    "metrics.json: a link": lambda folder: linked(folder / "metrics.json"),
    "meta.json: a link": lambda folder: linked(folder / "meta.json"),
    "an edited figure": lambda folder: put(
        folder / "metrics.json", json.dumps([{**METRICS[0], "value": 0.99}])
    ),
    "an edited result": lambda folder: edited(folder / "meta.json", result={"seconds": 0.1}),
    "an edited key": lambda folder: edited(folder / "meta.json", key={}),
    "no digests": lambda folder: edited(folder / "meta.json", files={}),
    "a file below": lambda folder: flip(folder / "sub" / "items.bin"),
    "a folder below": lambda folder: shutil.rmtree(folder / "sub"),
    "a file more": lambda folder: (folder / "sub" / "more.json").write_text("{}"),
    "a link more": lambda folder: (folder / "more").symlink_to("metrics.json"),
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "a dangling link in its place": lambda folder: (
        shutil.rmtree(folder),
        folder.symlink_to("nowhere"),
    ),
    "an empty folder in its place": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "another artifact in its place": lambda folder: (
        shutil.rmtree(folder),
        shutil.copytree(comparison("b"), folder),
    ),
}


@pytest.mark.parametrize("harm", CACHE.values(), ids=CACHE)
def test_a_damaged_artifact_is_named_and_made_again(cache_folder, capsys, harm):
    count = []
    folder = comparison(count=count)
    assert comparison(count=count) == folder and len(count) == 1 and not capsys.readouterr().err
    harm(folder)
    assert comparison(count=count) == folder and len(count) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"kerf: cache: {folder.name}: ") and told.count("\n") == 1
    assert json.loads((folder / "metrics.json").read_text()) == METRICS and cache.meta(folder)[
        "result"
    ] == {"seconds": 1.5}
    assert (folder / "sub" / "items.bin").read_bytes() == b"a" * 1000
    assert comparison(count=count) == folder and len(count) == 2 and not capsys.readouterr().err
    assert {path.name for path in cache_folder.iterdir()} <= {
        folder.name,
        comparison("b").name,
        "elsewhere",
    }


def test_a_file_is_read_once_a_process_until_it_changes(cache_folder, monkeypatch):
    folder, read = comparison(), []
    time.sleep(0.1)  # a file that has only just changed is not trusted to stay as it is
    comparison()
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name)
    )
    comparison()
    assert not read
    flip_unseen(folder / "metrics.json")
    comparison()
    assert str(folder / "metrics.json") in read


def candidate(folder: Path) -> Path:
    """A directory that is sealed like a candidate."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.parquet").write_bytes(b"weights" * 100)
    (folder / "config.json").write_text("{}")
    manifest.write_manifest(folder, {"model": "m", "kind": "encoder", "class": "C", "steps": []})
    return folder


CANDIDATE = {
    **{
        f"{file}: {name}": (file, do)
        for file in ("weights.parquet", "card.json")
        for name, do in FILE.items()
    },
    **{
        f"card.json: {name}": ("card.json", lambda path, text=text: put(path, text))
        for name, text in CONTENT.items()
    },
    "card.json: other steps": ("card.json", lambda path: edited(path, steps=[1])),
    "card.json: no files": ("card.json", lambda path: edited(path, files=None)),
}


@pytest.mark.parametrize(("file", "harm"), CANDIDATE.values(), ids=CANDIDATE)
def test_a_damaged_candidate_is_refused_by_its_file(tmp_path, file, harm):
    folder = candidate(tmp_path / "candidate")
    assert manifest.verify(folder)["model"] == "m"
    harm(folder / file)
    with pytest.raises(InputError, match=file):
        kerf.load(folder)


@pytest.fixture
def quantized(cache_folder, monkeypatch, tmp_path):
    """A function that runs or reuses a stage whose notebook makes a candidate; no kernel is started."""

    def execute(name, parameters, folder, partial):
        made = artifact("candidate", {"bits": 8}, lambda aside: candidate(aside) and {})
        for suffix in (".ipynb", ".html"):
            (folder / f"{name}{suffix}").write_text('{"cells": []}')
        (folder / "handover.json").write_text(json.dumps({"artifact": str(made)}))

    monkeypatch.setattr(notebook_stage, "_execute", execute)
    return lambda: notebook_stage.run_stage("quantize", {"bits": 8}, {}, tmp_path / "partial.ipynb")


STAGE = {
    **{
        f"{file}: {name}": (lambda done, file=file, do=do: do(done.notebook.parent / file))
        for file in ("quantize.ipynb", "quantize.html", "handover.json", "meta.json")
        for name, do in FILE.items()
    },
    **{
        f"handover.json: {name}": (
            lambda done, text=text: put(done.notebook.parent / "handover.json", text)
        )
        for name, text in CONTENT.items()
    },
    **{
        f"candidate, {file}: {name}": (lambda done, file=file, do=do: do(done.result / file))
        for file in ("weights.parquet", "card.json", "meta.json")
        for name, do in FILE.items()
    },
    "candidate, gone": lambda done: shutil.rmtree(done.result),
}


@pytest.mark.parametrize("harm", STAGE.values(), ids=STAGE)
def test_a_stage_is_reused_only_with_all_that_it_made(quantized, capsys, harm):
    done = quantized()
    assert not done.reused and quantized().reused and not capsys.readouterr().err
    harm(done)
    again = quantized()
    assert not again.reused and capsys.readouterr().err.count("kerf: cache: ") == 1
    assert (
        manifest.verify(again.result)
        and again.notebook.read_text() == '{"cells": []}'
        and again.result == done.result
    )
    assert quantized().reused


def test_what_a_kernel_found_damaged_is_told_by_the_run(tmp_path, capsys):
    told = ["kerf: cache: wiki-1: wiki.txt is missing; it is made again\n", "a warning\n"]
    outputs = [
        {"output_type": "stream", "name": "stderr", "text": told},
        {"output_type": "stream", "name": "stdout", "text": told[:1]},
        {"output_type": "error"},
    ]
    (tmp_path / "x.ipynb").write_text(
        json.dumps({"cells": [{"source": "# text"}, {"outputs": outputs}]})
    )
    notebook_stage._repeat_notices(tmp_path / "x.ipynb")
    assert capsys.readouterr().err == told[0]


def test_a_cache_that_was_moved_serves_its_own_artifacts(
    quantized, cache_folder, monkeypatch, capsys
):
    quantized()
    shutil.move(cache_folder.parent, cache_folder.parent.with_name("moved"))
    monkeypatch.setenv("KERF_DATA", str(cache_folder.parent.with_name("moved")))
    done = quantized()
    assert (
        done.reused
        and done.result.is_relative_to(cache_folder.parent.with_name("moved"))
        and not capsys.readouterr().err
    )


def write_run(out: Path, name="small", run="20260101T000000Z-aaaa", **change) -> Path:
    """A finished run of the candidates a and b."""
    folder = out / "reports" / "history" / name / run
    folder.mkdir(parents=True)
    both = [
        {
            "name": each,
            "status": "ok",
            "steps": [],
            "metrics": METRICS,
            "bytes_on_disk": 10,
            "verdict": "PASS",
        }
        for each in ("a", "b")
    ]
    content = {
        "schema": 1,
        "experiment": name,
        "verdict": "PASS",
        "model": {"id": "m"},
        "release": ["b"],
        "candidates": both,
        "manifest": {
            "run": run,
            "started": "2026-01-01T00:00:00+00:00",
            "seconds": 1.0,
            "data": {},
            "cpu": {},
        },
    }
    (folder / "results.json").write_text(json.dumps(content | change))
    for each, score in (("a", 0.5), ("b", 0.25)):
        table = pd.DataFrame(
            {
                "metric": ["cosine"] * 9,
                "document": range(9),
                "text": "t",
                "baseline": 1.0,
                "candidate": score,
            }
        )
        table.to_parquet(folder / f"{each}.parquet")
    return folder


def asked(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(each) for each in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


HISTORY = {
    **{
        f"{file}: {name}": (lambda folder, file=file, do=do: do(folder / file))
        for file in ("b.parquet", "results.json", "SHA256SUMS")
        for name, do in FILE.items()
        if (file, name) != ("SHA256SUMS", "gone")
    },
    "b.parquet: that of a": lambda folder: shutil.copyfile(
        folder / "a.parquet", folder / "b.parquet"
    ),
    "results.json: another verdict": lambda folder: edited(folder / "results.json", verdict="FAIL"),
    **{
        f"SHA256SUMS: {name}": (lambda folder, text=text: put(folder / "SHA256SUMS", text))
        for name, text in CONTENT.items()
    },
}


@pytest.mark.parametrize("harm", HISTORY.values(), ids=HISTORY)
def test_a_run_with_a_damaged_file_is_called_damaged(tmp_path, capsys, harm):
    folder = write_run(tmp_path)
    history.record_digests(folder)
    assert "PASS, m, 1 candidates" in asked(capsys, "list", "runs", "--out", tmp_path)[1]
    assert asked(capsys, "ab", "small/a", "small/b", "--out", tmp_path)[0] == 0
    harm(folder)
    code, out, _ = asked(capsys, "list", "runs", "--out", tmp_path)
    assert code == 0 and "damaged: " in out and "PASS" not in out
    code, out, error = asked(capsys, "ab", "small/a", "small/b", "--out", tmp_path)
    assert code == 2 and not out and "damaged (" in error and error.count("\n") == 1
    leaderboard.runs(tmp_path / "reports")


def test_a_run_that_lost_its_digests_is_damaged_and_one_that_never_had_any_is_read(
    tmp_path, capsys
):
    manifest = {"run": "r", "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0}
    write_run(tmp_path, "old")
    write_run(tmp_path, "lost", manifest={**manifest, "digests": history.SUMS})
    told = dict(
        line.split("/", 1)
        for line in asked(capsys, "list", "runs", "--out", tmp_path)[1].splitlines()
    )
    assert "PASS, m" in told["old"] and "damaged: SHA256SUMS is missing" in told["lost"]


def test_the_leaderboard_shows_no_edited_figure(tmp_path):
    folder, reports = write_run(tmp_path), tmp_path / "reports"
    history.record_digests(folder)
    (reports / "small").mkdir()
    shutil.copyfile(folder / "results.json", reports / "small" / "results.json")
    assert [run["problem"] for run in leaderboard.runs(reports)] == [None]
    edited(reports / "small" / "results.json", verdict="FAIL")
    assert sorted(
        (run["problem"] or "", run.get("verdict")) for run in leaderboard.runs(reports)
    ) == [("", "PASS"), ("damaged: results.json is truncated or edited (sha256 differs)", None)]
    edited(folder / "results.json", verdict="FAIL")
    assert (
        all("damaged" in run["problem"] for run in leaderboard.runs(reports))
        and "damaged" in render_index(reports).read_text()
    )


def of_b(**change) -> dict:
    return {
        "candidates": [
            {"name": "a"},
            {"name": "b", "status": "ok", "steps": [], "metrics": METRICS, **change},
        ]
    }


def of_metric(**change) -> dict:
    return of_b(metrics=[{**METRICS[0], **change}])


SHAPES = [
    {"candidates": [{}, {}]},
    {"candidates": [1]},
    {"candidates": "x"},
    {"candidates": None},
    {"candidates": {}},
    {"candidates": [None]},
    {"candidates": [[]]},
    of_b(name=3),
    of_b(metrics={}),
    of_b(metrics=[{}]),
    of_b(metrics=[3]),
    of_b(status=[]),
    of_b(error="x"),
    of_b(steps="x"),
    of_b(bytes_on_disk=-1),
    of_b(bytes_on_disk="9"),
    of_b(bytes_on_disk=True),
    of_b(compression_ratio=[]),
    of_b(grade={}),
    of_metric(value="x"),
    of_metric(value=float("nan")),
    of_metric(low=float("inf")),
    of_metric(high=True),
    of_metric(n="x"),
    of_metric(noise=3),
    of_metric(name=None),
    {"model": None},
    {"model": {}},
    {"model": {"id": 3}},
    {"model": []},
    {"manifest": []},
    {"manifest": None},
    {"manifest": {"cpu": 3}},
    {"manifest": {"data": []}},
    {"manifest": {"started": 3}},
    {"manifest": {"seconds": "x"}},
    {"settings": []},
    {"settings": {"a": 1}},
    {"release": "b"},
    {"release": [3]},
    {"verdict": []},
    {"experiment": 3},
    {"schema": "1"},
    {"schema": None},
    {"schema": []},
]


@pytest.mark.parametrize(
    "change", [*SHAPES, *CONTENT.values()], ids=lambda change: str(change)[:40]
)
def test_a_results_file_of_another_shape_is_unreadable_and_no_crash(tmp_path, capsys, change):
    folder = write_run(tmp_path, **(change if isinstance(change, dict) else {}))
    if not isinstance(change, dict):
        put(folder / "results.json", change)
    code, out, _ = asked(capsys, "list", "runs", "--out", tmp_path)
    assert code == 0 and "unreadable results.json (it " in out
    code, out, error = asked(capsys, "ab", "small/a", "small/b", "--out", tmp_path)
    assert code == 2 and not out and "a readable results.json" in error and error.count("\n") == 1
    (run,) = leaderboard.runs(tmp_path / "reports")
    assert (
        "not readable" in run["problem"]
        and not run["rows"]
        and "not readable" in render_index(tmp_path / "reports").read_text()
    )


MAKER = """
import sys, time
from pathlib import Path
from kerf.core.cache import artifact
from kerf.core.scratch import scratch

def make(folder):
    (folder / "half").write_text("x")
    with scratch() as socket, scratch(".part-", Path(sys.argv[2])):
        print("ready", flush=True)
        time.sleep(600)

artifact(sys.argv[1], {}, make, code=[Path(__file__)])
"""


def leftovers(tmp_path: Path) -> dict[str, int]:
    places = {
        "cache": tmp_path / "data" / "cache",
        "out": tmp_path / "out" / "data" / "runs" / "small",
        "temporary": tmp_path / "temporary",
    }
    return {name: len(list(place.iterdir())) for name, place in places.items()}


def test_leftovers_of_dead_runs_go_and_those_of_living_ones_stay(
    cache_folder, tmp_path, monkeypatch
):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "out" / "data" / "runs" / "small").mkdir(parents=True)
    (tmp_path / "temporary" / "of-somebody-else").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "maker.py").write_text(MAKER)
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONPATH": str(Path(kerf.__file__).parents[1]),
    }
    started = [
        subprocess.Popen(
            [sys.executable, tmp_path / "maker.py", kind, tmp_path / "out/data/runs/small"],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for kind in ("stage", "describe", "encoding", "candidate")
    ]
    try:
        assert all(process.stdout.readline() == b"ready\n" for process in started)
        (cache_folder / ".old-of-another-version").mkdir()
        for dead in started[1:]:
            dead.kill()
            dead.wait()
        assert leftovers(tmp_path) == {"cache": 5, "out": 4, "temporary": 5}
        runner.sweep_leftovers(tmp_path / "out")
        assert leftovers(tmp_path) == {"cache": 1, "out": 1, "temporary": 2}
        (alive,) = cache_folder.iterdir()
        assert alive.name.startswith(".stage-") and (alive / "half").is_file()
    finally:
        started[0].kill()
        started[0].wait()
    runner.sweep_leftovers(tmp_path / "out")
    assert leftovers(tmp_path) == {"cache": 0, "out": 0, "temporary": 1}
