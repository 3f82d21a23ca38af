"""Killed kernels, kernel servers and measured processes, and sockets that say nothing: tried again, or given up in bounded time."""

import os
import signal
import socket
import subprocess
import sys
import time

import nbformat
import pytest

from kerf.core import child_process
from kerf.core.errors import InputError
from kerf.data import downloads
from kerf.evaluate import measure
from kerf.models import registry
from kerf.workbench.run import kernel_forkserver, notebook_stage

HAND_OVER = 'from kerf.core.cache import artifact, publish\npublish(artifact("made", {"n": 1}, lambda folder: None))'
TRIES = "import os, pathlib, signal\ntries = pathlib.Path(tries)\ntries.write_text(tries.read_text() + 'x')\n"
KILL_KERNEL = "os.kill(os.getpid(), signal.SIGKILL)"
SCENES = {  # what the notebook does, how often it is run, and what its message says (None: it ends well)
    "the kernel is killed once": (f"if tries.read_text() == 'x':\n    {KILL_KERNEL}", 2, None),
    "the kernel is asked to end once": (
        "if tries.read_text() == 'x':\n    os.kill(os.getpid(), signal.SIGTERM)",
        2,
        None,
    ),
    "the kernel is killed each time": (KILL_KERNEL, 2, "died twice"),
    "the kernel server is killed": ("os.kill(os.getppid(), signal.SIGKILL)", 1, None),
    "kernel and server are killed once": (
        f"if tries.read_text() == 'x':\n    os.kill(os.getppid(), signal.SIGKILL)\n    {KILL_KERNEL}",
        2,
        None,
    ),
    "a cell fails": ("1 / 0", 1, "ZeroDivisionError"),
}


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """Runs a stage whose notebook has one cell of that code; gives what came of it and how often it ran."""
    monkeypatch.setenv("KERF_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(notebook_stage, "notebook_path", lambda name: tmp_path / f"{name}.ipynb")
    tries = tmp_path / "tries"
    tries.write_text("")

    def run(code: str):
        first = nbformat.v4.new_code_cell(
            f"tries = {str(tries)!r}", metadata={"tags": ["parameters"]}
        )
        cells = [
            first,
            nbformat.v4.new_code_cell(TRIES),
            nbformat.v4.new_code_cell(code),
            nbformat.v4.new_code_cell(HAND_OVER),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "tiny.ipynb")
        try:
            return notebook_stage.run_stage("tiny", {}, {}, tmp_path / "tiny.partial.ipynb"), len(
                tries.read_text()
            )
        except notebook_stage.StageFailed as failure:
            return failure.error["message"], len(tries.read_text())

    return run


@pytest.mark.parametrize("scene", SCENES)
def test_what_was_killed_is_tried_once_more_and_what_fails_is_not(staged, scene):
    code, tries, said = SCENES[scene]
    came, ran = staged(code)
    assert ran == tries
    assert said in came if said else came.result.is_dir() and not came.reused


def test_a_server_that_died_between_stages_or_answers_no_more_is_started_again(staged, monkeypatch):
    server = notebook_stage._forkserver()
    server.kernel_command()
    server.process.kill()
    server.process.wait()
    assert staged("'after a death'")[0].result.is_dir()
    frozen = server.process

    frozen.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(kernel_forkserver, "ANSWER_SECONDS", 1.0)
    came, _ = staged("'after a silence'")
    assert came.result.is_dir() and frozen.poll() is not None


def test_a_server_that_does_not_get_ready_is_given_up(monkeypatch):
    monkeypatch.setattr(kernel_forkserver, "READY_SECONDS", 0.1)
    server = kernel_forkserver.KernelForkserver()
    with pytest.raises(RuntimeError, match="did not start"):
        server.kernel_command()
    assert server.process is None
    server.close()
    assert not server.folder.exists()


def test_who_asks_a_silent_server_for_a_kernel_ends(tmp_path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        command = [
            sys.executable,
            "-S",
            kernel_forkserver.__file__,
            "join",
            str(tmp_path / "silent"),
            "x",
            "0.2",
        ]
        done = subprocess.run(command, timeout=60, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == 1


def test_the_server_and_its_folder_end_with_whoever_was_killed():
    code = """import os, signal
from kerf.workbench.run.kernel_forkserver import KernelForkserver
server = KernelForkserver()
server.kernel_command()
print(server.process.pid, server.folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)"""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False
    )
    pid, folder = done.stdout.split()
    assert gone(int(pid)) and not os.path.exists(folder)


def gone(pid: int, within: float = 10) -> bool:
    until = time.time() + within
    while time.time() < until:
        try:
            with open(f"/proc/{pid}/stat") as status:
                if status.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_measured_process_ends_with_who_asked_for_it():
    code = """import os, signal, subprocess, sys
from kerf.core import child_process
child = subprocess.Popen(child_process.tied([sys.executable, "-c", "import time; time.sleep(300)"]))
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)"""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False
    )
    assert gone(int(done.stdout))


@pytest.mark.parametrize(
    ("number", "times", "tries"),
    [("SIGKILL", 1, 2), ("SIGTERM", 1, 2), ("SIGKILL", 9, 2), ("SIGSEGV", 9, 1)],
)
def test_a_measured_process_that_is_killed_is_run_once_more(tmp_path, number, times, tries):
    count = tmp_path / "count"
    code = f"""import os, signal
with open({str(count)!r}, "a+") as file:
    file.write("x")
    file.flush()
    if file.tell() <= {times}:
        os.kill(os.getpid(), signal.{number})"""
    done = child_process.run([sys.executable, "-c", code])
    assert len(count.read_text()) == tries and bool(done.returncode) == (times > 1)
    if times > 1:
        assert ("killed twice" in child_process.how_it_ended(done)) == (number == "SIGKILL")


def test_a_killed_process_that_loads_leaves_no_number_that_is_none(tmp_path):
    once, parent = tmp_path / "once", os.getpid()

    def killed_once():
        if not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def killed():
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    assert measure._in_child(killed_once) > 0 and measure._in_child(killed) is None


@pytest.fixture
def silence(monkeypatch):
    """Port of a server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        monkeypatch.setattr(downloads, "SECONDS", 1.0)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_does_not_answer_is_refused(silence, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", silence)
    monkeypatch.setenv("KERF_DATA", str(tmp_path))
    clock = time.monotonic()
    with pytest.raises(InputError, match="the hub could not provide it") as refusal:
        registry.resolve("some/model")
    assert time.monotonic() - clock < 15 and "\n" not in str(refusal.value)


def test_an_index_that_does_not_answer_is_refused(silence, monkeypatch, tmp_path):
    monkeypatch.delenv("PIP_DEFAULT_TIMEOUT", raising=False)  # whoever sets it wants to wait
    for key, value in {
        "INDEX_URL": f"{silence}/simple",
        "CONFIG_FILE": os.devnull,
        "NO_INPUT": "1",
    }.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    monkeypatch.delenv("PIP_DEFAULT_TIMEOUT", raising=False)  # what a machine sets goes first
    clock = time.monotonic()
    with pytest.raises(InputError, match="pip could not download") as refusal:
        downloads._download(downloads.TEXTS, tmp_path, tmp_path / "news.txt")
    assert time.monotonic() - clock < 60 and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_run_that_is_asked_to_end_says_one_line(number, code):
    program = """import signal, sys, time
from kerf.workbench import cli
def check(_):
    print("here", flush=True)
    time.sleep(60)
cli.check = check
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(cli.main(["check", "minilm"]))"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (
        process.returncode == code
        and len(said.splitlines()) == 1
        and "what was finished is kept" in said
    )
