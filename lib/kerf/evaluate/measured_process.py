"""A module run in a fresh process, so that what it measures is not this process's."""

import json
import os
import sys
from pathlib import Path

from kerf.core import child_process
from kerf.core.errors import InputError


def run_measured(module: str, request: Path) -> None:
    """Run a module in a fresh process, which ends with this one, on a request with its `threads`.

    Raises InputError, and RuntimeError when it fails or is killed twice.
    """
    # A caller's OMP_NUM_THREADS must not decide for the measured process: the request does.
    threads_asked = str(json.loads(request.read_text())["threads"])
    done = child_process.run(
        [sys.executable, "-m", module, request],
        env={**os.environ, "OMP_NUM_THREADS": threads_asked},
    )
    if done.returncode:
        refusal = (
            done.stderr.strip()
            .rpartition("\n")[2]
            .partition(f"{InputError.__module__}.{InputError.__qualname__}: ")[2]
        )
        raise (
            InputError(refusal)
            if refusal
            else RuntimeError(f"the measured process {child_process.how_it_ended(done)}")
        )
