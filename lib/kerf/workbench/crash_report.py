"""An unexpected error: one line with its cause, the full trace in a file, and exit code 3, since exit code 1 is for gates."""

import contextlib
import os
import sys
import tempfile
import traceback
from pathlib import Path

from kerf.core.errors import printable

CODE = 3


def explain(error: BaseException, out: str | None) -> int:
    """Print on standard error what ended a command and where its trace is. Returns the exit code.

    out: the directory of the command's reports, if it has one, for the trace; otherwise a temporary file holds it.
    """
    if isinstance(error, BrokenPipeError):
        # At exit the interpreter would flush the buffer, fail again, and choose an exit code of its own.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        message = " ".join(str(error)[:1000].split())
    except Exception:
        message = "no message"
    cause = printable(f"{type(error).__name__}: {message}".rstrip(": "), 300)
    line = f"kerf: {cause}; the full trace is in {_write_trace(error, out)}"
    with contextlib.suppress(OSError):  # standard error may be the closed pipe
        print(line, file=sys.stderr, flush=True)
    return CODE


def _write_trace(error: BaseException, out: str | None) -> str:
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
