"""Slow work beside a page that must not freeze: the newest of many wishes in a thread, a whole candidate in a process."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kerf.core import child_process


class LatestRequest:
    """One thread that does the newest wish; those that it overtook are dropped, so that it never lags behind a slider."""

    def __init__(self, work: Callable) -> None:
        """work(wish): shall not raise."""
        self._work, self._wish, self._changed = work, None, threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, wish: object) -> None:
        """Do `wish` next, in place of any that has not begun."""
        with self._changed:
            self._wish = (wish,)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wish is not None)
                (wish,), self._wish = self._wish, None
            self._work(wish)


class BackgroundBuild:
    """A candidate made in a process of its own, which can be ended at any time: the cache holds whole folders only."""

    def __init__(self, model: str, steps: list[dict], calibration) -> None:
        """Start at once."""
        wish = json.dumps({"model": model, "steps": steps, "calibration": calibration.model_dump()})
        self._process = subprocess.Popen(
            child_process.tied([sys.executable, "-m", __name__, wish]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._started, self._cancelled = time.monotonic(), False

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def over(self, within: float) -> bool:
        """Whether it is over, after at most so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within)
        return self._process.returncode is not None

    def result(self) -> Path:
        """Directory of the candidate, once it is over. Raises RuntimeError with the cause where there is none."""
        answer = self._process.stdout.read()
        if self._cancelled or not answer:
            raise RuntimeError(
                "cancelled"
                if self._cancelled
                else f"the process ended with {self._process.returncode}"
            )
        told = json.loads(answer)
        if "problem" in told:
            raise RuntimeError(told["problem"])
        return Path(told["folder"])

    def cancel(self) -> None:
        """End it; what was being made is thrown away."""
        self._cancelled = True
        self._process.terminate()


def main() -> None:
    """What the process does: one line of JSON on its standard output, whatever a library prints."""
    from kerf.config import Calibration
    from kerf.pipeline import build

    wish = json.loads(sys.argv[1])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            told = {
                "folder": str(
                    build(wish["model"], wish["steps"], Calibration(**wish["calibration"]))
                )
            }
    except Exception as error:  # told to whoever waits
        told = {"problem": f"{error}".partition("\n")[0] or type(error).__name__}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
