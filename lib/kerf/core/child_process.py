"""Processes that end when the one that started them ends, however it ends.

`run` starts a command through this file: run as a script, it ties itself to its parent and becomes the command, so
that what is measured is the command alone. Where the system knows no such tie (it is Linux's), only the command runs.
The tie is to the thread that started the process: call from one that lives as long as it should.

Standard library only, and little of it: it starts before every measured process.
"""

import os
import signal
import sys

FROM_OUTSIDE = (
    signal.SIGKILL,
    signal.SIGTERM,
)  # what a system out of memory, or somebody, sends; a crash is another


def tied(command: list) -> list[str]:
    """The command that starts `command`, its program as a path, so that it ends with this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *map(str, command)]


def run(command: list, **options):
    """subprocess.run of a tied command, its output captured as text; one that was killed from outside is run once more."""
    import subprocess

    for _ in range(2):
        done = subprocess.run(tied(command), capture_output=True, text=True, check=False, **options)
        if -done.returncode not in FROM_OUTSIDE:
            break
    return done


def how_it_ended(done) -> str:
    """Of a finished process that failed: its status and the last line that it said, in a clause."""
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if -done.returncode in FROM_OUTSIDE:
        return f"was killed twice ({signal.Signals(-done.returncode).name}); the system may have run out of memory"
    return f"ended with {done.returncode}: {last}"


def tie(parent: int) -> None:
    """Have this process killed as soon as its parent, the process `parent`, is gone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; it outlasts exec
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
