"""Child processes that end when their parent ends, for whatever reason.

`run` starts a command through this file: run as a script, it ties itself to the thread that started it with prctl (Linux
only) and then becomes the command. It imports little, since it runs before every measured process.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # importing typing is slow; type checkers take this name for true
if TYPE_CHECKING:
    from subprocess import CompletedProcess
    from typing import Any

# Signals that the system (out of memory) or a person sends; a crash has others.
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)


def tied(command: list) -> list[str]:
    """The command line that starts `command`, whose program is a path, so that it ends with this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *map(str, command)]


def run(command: list, **options: Any) -> CompletedProcess[str]:
    """subprocess.run of a tied command with its output captured as text; a command killed from outside is run once more."""
    import subprocess

    options = {"capture_output": True, "text": True, "check": False, **options}
    done = subprocess.run(tied(command), **options)
    return subprocess.run(tied(command), **options) if -done.returncode in FROM_OUTSIDE else done


def how_it_ended(done: CompletedProcess[str]) -> str:
    """A clause about a failed process: its exit status and the last line of its standard error."""
    if -done.returncode in FROM_OUTSIDE:
        return f"was killed twice ({signal.Signals(-done.returncode).name}); the system may have run out of memory"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"ended with {done.returncode}: {last}"


def tie(parent: int) -> None:
    """Have this process killed when its parent, the process `parent`, ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; it outlasts exec
    if os.getppid() != parent:  # the parent ended before
        os._exit(1)


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
