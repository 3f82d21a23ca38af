"""Kill a run at random moments, many times over, then let it finish: are its figures those of an undisturbed run?

    python benchmarks/kills.py [--kills 50] [--seed 0]

A kill hits the run itself, the process that kernels start from, a kernel or a measured process, with SIGKILL or
SIGTERM, at a random moment of each stage; the stage has to end well in spite of it, or the run to stop and leave no
process, and the next run goes on. At the end stand a run that nobody kills, the comparison of its results.json with
that of a run in another place (times, memory and the run's own name apart), what all runs called their candidates, and
what the killed runs left behind: folders, parts of files, sockets. Exit code 1 unless all of it is as it should be.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.small import write_model

STAGES = 5  # of the experiment below
TARGETS = ("run", "server", "kernel", "measured")
OF_THE_MACHINE = (
    "rss_peak_bytes",
    "load_seconds",
    "compress_seconds",
    "compress_peak_rss_bytes",
    "manifest",
    "reused",
)
GONE_WITHIN = 10.0  # seconds in which everything that a killed run started has to be gone
EXPERIMENT = """
model: {model}
calibration: {{samples: 24}}
evaluation: {{sentences: 40, queries: 40, passages: 40, retrieval: [news], classification: []}}
candidates:
  int2: [{{quantize: {{method: gptq, bits: 2, group_size: 32}}}}]
criteria: [encoder]
"""


class Place:
    """A folder with a cache, an output and temporary files of its own, in which the experiment runs."""

    def __init__(self, folder: Path, experiment: Path, sources: Path) -> None:
        self.folder, self.experiment = folder, experiment
        for name in ("data", "tmp"):
            (folder / name).mkdir(parents=True)
        (folder / "data" / "sources").symlink_to(sources)

    def start(self) -> subprocess.Popen:
        """The run, in the background."""
        environment = {
            **os.environ,
            "KERF_DATA": str(self.folder / "data"),
            "TMPDIR": str(self.folder / "tmp"),
            "OMP_NUM_THREADS": "1",
        }
        command = [
            sys.executable,
            "-m",
            "kerf",
            "run",
            str(self.experiment),
            "--out",
            str(self.folder / "out"),
        ]
        with open(
            self.folder / "said", "a"
        ) as said:  # no pipe: who waits for its end would wait for a process left behind
            return subprocess.Popen(command, env=environment, stdout=said, stderr=said)

    def last(self) -> str:
        """What the runs said last."""
        return " / ".join((self.folder / "said").read_text().splitlines()[-6:])

    def stages(self) -> int:
        """How many are finished."""
        return len(list((self.folder / "data/cache").glob("stage-*")))

    def figures(self) -> str:
        """results.json of the newest run without what the machine decides."""
        return json.dumps(
            _without(json.loads((self.folder / "out/reports/kills/results.json").read_text())),
            indent=1,
        )

    def verdicts(self) -> set[str]:
        """Of all candidates, in all runs of the history."""
        found = (self.folder / "out/reports/history").glob("*/*/results.json")
        return {
            f"{each['status']} {each['verdict']}"
            for path in found
            for each in json.loads(path.read_text())["candidates"]
        }

    def left(self) -> list[str]:
        """What no finished run needs: hidden folders and parts of files, temporary files, sockets."""
        patterns = ("data/cache/.*", "tmp/*", "out/**/.*", "out/**/*.part")
        return [
            str(path.relative_to(self.folder))
            for pattern in patterns
            for path in self.folder.glob(pattern)
        ]


def _without(value):
    if isinstance(value, dict):
        return {key: _without(each) for key, each in value.items() if key not in OF_THE_MACHINE}
    if isinstance(value, list):
        return [
            _without(each)
            for each in value
            if not (isinstance(each, dict) and each.get("name") in OF_THE_MACHINE)
        ]
    return value


def kind(process: psutil.Process, family: dict[int, str]) -> str:
    """What a descendant of a run is: a name of TARGETS, or none of them."""
    try:
        command = " ".join(process.cmdline())
        if " join " in command:
            return ""
        if " serve " in command:  # kernels are forked from the server, and have its command line
            return "kernel" if family.get(process.ppid()) == "server" else "server"
        return "measured" if "kerf.evaluate." in command else ""
    except psutil.Error:
        return ""


def family(run: subprocess.Popen) -> tuple[dict[str, list[psutil.Process]], list[psutil.Process]]:
    """Living descendants of a run by what they are, and all of them."""
    try:
        every = psutil.Process(run.pid).children(recursive=True)
    except psutil.Error:
        every = []
    kinds: dict[int, str] = {}
    found: dict[str, list[psutil.Process]] = (
        {"run": [psutil.Process(run.pid)]} if run.poll() is None else {}
    )
    for process in every:  # parents before their children
        kinds[process.pid] = kind(process, kinds)
        found.setdefault(kinds[process.pid], []).append(process)
    return found, every


def attack(
    place: Place, kills: int, pause: float, generator: random.Random
) -> list[tuple[str, bool]]:
    """One run with at most so many kills, no two in one stage, at moments drawn evenly over `pause` seconds of it.

    What was hit, and whether all went on as it should: the stage ended well in spite of the kill, or the run stopped.
    """
    run, found = place.start(), []
    while run.poll() is None and len(found) < kills:
        until = time.monotonic() + generator.uniform(0, pause)
        target, number = (
            generator.choice(TARGETS),
            generator.choice([signal.SIGKILL, signal.SIGTERM]),
        )
        hit, every = _hit(run, target, number, until)
        if not hit:
            break
        finished = place.stages()
        while run.poll() is None and (target == "run" or place.stages() == finished):
            time.sleep(0.05)
        found.append((f"{target}, {number.name}", _ended(run, target, number, every)))
    run.wait()
    return found


def _hit(
    run: subprocess.Popen, target: str, number: signal.Signals, until: float
) -> tuple[bool, list[psutil.Process]]:
    """Send the signal to such a process of the run at that moment, or as soon as there is one; with all processes there were."""
    while run.poll() is None:
        found, every = family(run)
        if time.monotonic() >= until and found.get(target):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[target][-1].send_signal(number)
                return True, every
        time.sleep(0.05)
    return False, []


def _ended(
    run: subprocess.Popen, target: str, number: signal.Signals, every: list[psutil.Process]
) -> bool:
    """Whether a run goes on, has ended well, or was stopped and left no process."""
    stopped = (0, -number, 128 + number) if target == "run" else (0,)
    if run.poll() is None:
        return True
    _, alive = psutil.wait_procs(every, timeout=GONE_WITHIN)
    for process in alive:
        process.kill()
    return run.returncode in stopped and not alive


def main() -> int:
    """Print a table of kills and what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    from kerf.core.paths import data_folder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "kills.yaml").write_text(EXPERIMENT.format(model=write_model(folder / "model")))
        whole, killed = (
            Place(folder / name, folder / "kills.yaml", data_folder() / "sources")
            for name in ("whole", "killed")
        )
        clock = time.monotonic()
        whole.start().wait()
        return report(
            killed, whole, time.monotonic() - clock, asked.kills, random.Random(asked.seed)
        )


def report(
    killed: Place, whole: Place, seconds: float, kills: int, generator: random.Random
) -> int:
    """Kill, compare, and print. Returns the exit code."""
    print(f"an undisturbed run takes {seconds:.0f} s", flush=True)
    done, right = Counter(), Counter()
    while sum(done.values()) < kills:
        found = attack(killed, kills - sum(done.values()), seconds / STAGES, generator)
        for name, well in found:
            done[name] += 1
            right[name] += well
            print(
                f"{sum(done.values())}/{kills} {name}: {'as it should' if well else f'wrong; {killed.last()}'}",
                flush=True,
            )
        if not any(name.startswith("run") for name, _ in found):
            _forget(killed)  # it went to its end: the next kill has to find work to interrupt
    killed.start().wait()
    print("\n| kill | times | right |\n| --- | --- | --- |")
    for name in sorted(done):
        print(f"| {name} | {done[name]} | {right[name]} |")
    equal, left, verdicts = killed.figures() == whole.figures(), killed.left(), killed.verdicts()
    print(
        f"\nfigures equal to those of the undisturbed run: {equal}\nleft behind: {left or 'nothing'}\nin the history: {sorted(verdicts)}"
    )
    return 0 if equal and not left and right == done else 1


def _forget(place: Place) -> None:
    """Remove what is finished, so that the next kill finds work to interrupt."""
    for folder in (place.folder / "data/cache").glob("[!.]*"):
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
