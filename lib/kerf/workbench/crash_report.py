"""What nobody foresaw: one line with the cause, the full trace in a file, and exit code 3. Exit code 1 is a gate's alone."""

import contextlib
import os
import sys
import tempfile
import traceback
from pathlib import Path

from kerf.core.errors import printable

CODE = 3


def explain(error: BaseException, out: str | None) -> int:
    """Say on standard error what ended a command, and where its trace is. Returns the exit code.

    out: the directory of the command's reports, where it has one; the trace goes there, else among temporary files.
    """
    if isinstance(error, BrokenPipeError):
        # What is still in the buffer would raise again when the interpreter ends, and end it with a code of its own.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    said = printable(f"{type(error).__name__}: {_message(error)}".rstrip(": "), 300)
    with contextlib.suppress(OSError):  # standard error may be the pipe that is closed
        print(
            f"kerf: {said}; the full trace is in {_written(error, out)}",
            file=sys.stderr,
            flush=True,
        )
    return CODE


def _message(error: BaseException) -> str:
    try:
        return " ".join(str(error)[:1000].split())
    except Exception:
        return "no message"


def _written(error: BaseException, out: str | None) -> str:
    folders = [Path(out, "reports")] if out else []
    with contextlib.suppress(OSError):
        folders.append(Path(tempfile.gettempdir()))
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):
            handle, path = tempfile.mkstemp(prefix="kerf-trace-", suffix=".txt", dir=folder)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                traceback.print_exception(error, file=file)
            return printable(path)
    return "no file: there is no folder that can be written"
