"""A measurement in a fresh process, so that memory and timings are not those of the calling process."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from kerf.core import child_process
from kerf.core.errors import InputError


def run_measured(module: str, request: dict, folder: Path) -> Any:
    """Result of a module that ends with `serve`, in a process that ends with this one; request: JSON, with `threads`.

    Raises InputError, and RuntimeError when the process fails or is killed twice.
    """
    path, result = folder / "request.json", folder / "result.json"
    path.write_text(json.dumps(request))
    # The request sets the threads of the measured process, whatever OMP_NUM_THREADS is for the caller.
    environment = {**os.environ, "OMP_NUM_THREADS": str(request["threads"])}
    done = child_process.run([sys.executable, "-m", module, path], env=environment)
    if done.returncode:
        name = f"{InputError.__module__}.{InputError.__qualname__}: "
        if refusal := done.stderr.strip().rpartition("\n")[2].partition(name)[2]:
            raise InputError(refusal)
        raise RuntimeError(f"the measured process {child_process.how_it_ended(done)}")
    path.unlink()
    return json.loads(result.read_text())


def serve(measure: Callable[[dict, Path], Any]) -> NoReturn:
    """Write measure(request, folder) beside the request named on the command line, and exit."""
    path = Path(sys.argv[1])
    result = measure(json.loads(path.read_text()), path.parent)
    path.with_name("result.json").write_text(json.dumps(result))
    os._exit(0)  # an orderly teardown of torch takes a second
