"""Slow work beside a page that must not freeze: the latest request in a thread, a whole candidate in a process."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from kerf.config import Calibration
from kerf.core import child_process


class LatestRequest:
    """A thread that handles the latest request and drops older ones, so that it never lags behind a slider."""

    def __init__(self, handle: Callable[[Any], object]) -> None:
        """handle(request): must not raise."""
        self._handle = handle
        self._requests: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, request: object) -> None:
        """Handle `request` next, in place of any that has not begun."""
        self._requests.put(request)

    def _run(self) -> None:
        while True:
            request = self._requests.get()
            while not self._requests.empty():
                request = self._requests.get()
            self._handle(request)


class BackgroundBuild:
    """A candidate made in a process of its own, which can be ended at any time: the cache holds whole folders only."""

    def __init__(self, model: str, steps: list[dict], calibration: Calibration) -> None:
        """Start at once."""
        request = {"model": model, "steps": steps, "calibration": calibration.model_dump()}
        command = [sys.executable, "-m", __name__, json.dumps(request)]
        out, err = subprocess.PIPE, subprocess.DEVNULL
        tied = child_process.tied(command)
        self._process = subprocess.Popen(tied, stdout=out, stderr=err, text=True)
        self._started, self._cancelled = time.monotonic(), False

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def over(self, within: float) -> bool:
        """Whether the process has ended, after waiting for at most `within` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within)
        return self._process.returncode is not None

    def result(self) -> Path:
        """Directory of the candidate, once the process has ended. Raises RuntimeError with the cause of a failure."""
        line = self._process.communicate()[0]
        if self._cancelled:
            raise RuntimeError("cancelled")
        died = {"problem": f"the process ended with {self._process.returncode}"}
        outcome = json.loads(line) if line else died
        if "problem" in outcome:
            raise RuntimeError(outcome["problem"])
        return Path(outcome["folder"])

    def cancel(self) -> None:
        """End the process; its unfinished work is thrown away."""
        self._cancelled = True
        self._process.terminate()


def main() -> None:
    """Build the candidate in the argument, and print its folder or the problem as one line of JSON."""
    from kerf.pipeline import build

    request = json.loads(sys.argv[1])
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a library prints
            calibration = Calibration(**request["calibration"])
            outcome = {"folder": str(build(request["model"], request["steps"], calibration))}
    except Exception as error:  # the parent process raises it
        outcome = {"problem": f"{error}".partition("\n")[0] or type(error).__name__}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
