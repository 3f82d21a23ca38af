"""Slow work beside a page that must not freeze: the latest request in a thread, a whole candidate in a process."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from kerf.config import Calibration
from kerf.core import child_process


def latest_request(handle: Callable[[Any], object]) -> Callable[[Any], None]:
    """Start a thread that handles the latest request and drops older ones; returns the function that submits a request."""
    requests: SimpleQueue[Any] = SimpleQueue()

    def run() -> None:
        while True:
            request = requests.get()
            while not requests.empty():
                request = requests.get()
            handle(request)  # must not raise

    threading.Thread(target=run, daemon=True).start()
    return requests.put


class BackgroundBuild:
    """A candidate made in a process of its own, which can be ended at any time: the cache holds whole folders only."""

    def __init__(self, model: str, steps: list[dict], calibration: Calibration) -> None:
        """Start at once."""
        request = json.dumps([model, steps, calibration.model_dump()])
        command = child_process.tied([sys.executable, "-m", __name__, request])
        out, err = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=out, stderr=err, text=True)
        self._cancelled = False

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
        died = f"the process ended with {self._process.returncode}"
        folder, problem = json.loads(line) if line else ("", died)
        if problem:
            raise RuntimeError(problem)
        return Path(folder)

    def cancel(self) -> None:
        """End the process; its unfinished work is thrown away."""
        self._cancelled = True
        self._process.terminate()


def main() -> None:
    """Build the candidate in the argument, and print its folder and the problem, one of them empty, as JSON."""
    from kerf.pipeline import build

    model, steps, calibration = json.loads(sys.argv[1])
    folder = problem = ""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a library prints
            folder = str(build(model, steps, Calibration(**calibration)))
    except Exception as error:  # the parent process raises it
        problem = str(error).partition("\n")[0] or type(error).__name__
    print(json.dumps([folder, problem]))


if __name__ == "__main__":
    main()
