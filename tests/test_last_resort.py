"""What nobody foresaw ends in one line, a trace in a file, and exit code 3: exit code 1 is a gate's alone."""

import json
import os
import subprocess
import sys

import pytest

from kerf.core.errors import escaped, printable, refuse
from kerf.workbench import cli
from kerf.workbench.run import experiment
from kerf.workbench.run.notebook_stage import StageFailed


class Panic(BaseException):
    """As a library in Rust raises it: no Exception."""


class Mute(RuntimeError):
    def __str__(self):
        raise ValueError


ENDS = [
    RuntimeError("it broke\nin two lines \x1b[31m"),
    MemoryError(),
    RecursionError("deep"),
    OSError(28, "No space left on device"),
    KeyError("\ud800"),
    Panic("rust"),
    SystemExit(1),
    SystemExit(0),
    Mute(),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
]


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_any_exception_is_one_line_with_the_trace_in_a_file(error, monkeypatch, tmp_path, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(experiment, "read", fail)
    (tmp_path / "reports").mkdir()
    assert cli.main(["run", "minilm", "--gate", "--out", str(tmp_path)]) == 3
    line = capsys.readouterr().err
    assert (
        line.count("\n") == 1
        and line[:-1].isprintable()
        and line.startswith(f"kerf: {type(error).__name__}")
    )
    (trace,) = (tmp_path / "reports").iterdir()
    assert (
        str(trace) in line and "in fail" in trace.read_text() and "Traceback" in trace.read_text()
    )


def test_without_a_folder_of_reports_the_trace_is_among_temporary_files(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(experiment, "read", lambda *_: 1 / 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.main(["check", "minilm"]) == 3
    assert str(next(tmp_path.iterdir())) in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert cli.main(["check", "minilm", "--out", str(tmp_path / "absent")]) == 3
    assert (
        "ZeroDivisionError: division by zero; the full trace is in no file"
        in capsys.readouterr().err
    )


def test_an_interrupt_is_no_fault(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "read", stop)
    assert cli.main(["check", "minilm"]) == 130 and "stopped" in capsys.readouterr().err


def test_a_closed_pipe_does_not_end_in_1():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "kerf", "list", "methods"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (
        done.returncode == 3 and done.stderr.count("\n") == 1 and "BrokenPipeError" in done.stderr
    )


def test_what_a_notebook_said_reaches_no_terminal_and_no_page_raw():
    failed = StageFailed("compare.ipynb", 3, "ValueError: \x1b[2Jgone \x9b1m \ud800 \u202e")
    assert failed.error[
        "message"
    ] == r"ValueError: \x1b[2Jgone \x9b1m \ud800 \u202e" and failed.error["message"] in str(failed)


def test_names_of_runs_reach_no_terminal_raw(tmp_path, capsys):
    folder = tmp_path / "reports" / "history" / "a\x1b[31m" / "20260101T000000Z-1"
    folder.mkdir(parents=True)
    content = {
        "schema": 1,
        "experiment": "a",
        "verdict": "PASS\x1b[2J",
        "model": {"id": "m\x9b"},
        "candidates": [{"name": "baseline"}],
        "manifest": {},
    }
    (folder / "results.json").write_text(json.dumps(content))
    assert cli.main(["list", "runs", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert (
        said.startswith(r"a\x1b[31m/20260101T000000Z-1")
        and r"PASS\x1b[2J, m\x9b" in said
        and said.strip().isprintable()
    )


def test_a_value_is_looked_at_no_further_than_it_is_shown():
    bomb = ["x"]
    for _ in range(60):  # 9 ** 60 of them, were they counted
        bomb = [bomb] * 9
    cyclic = []
    cyclic.append(cyclic)
    for value in (
        bomb,
        cyclic,
        {"a": bomb},
        10**100_000,
        "x" * 10**6,
        {str(n): n for n in range(10**4)},
    ):
        line = str(refuse("key", value, "less"))
        assert len(line) < 200 and line.isprintable() and line.endswith(": less")


def test_escapes_keep_what_people_write():
    assert printable("naïve – 漢字 🙂") == escaped("naïve – 漢字 🙂") == "naïve – 漢字 🙂"
    assert printable("a\0\n\ud800") == escaped("a\0\n\ud800") == r"a\x00\n\ud800"
