"""A fresh process that loads one model, runs inference on the evaluation inputs, and reports time and memory.

Run as `python -m kerf.evaluate.measure REQUEST.json`. Load times come from children forked right after the imports: to the
loader each is a fresh process.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kerf.core import child_process
from kerf.evaluate.measured_process import serve
from kerf.models import manifest

LOADS = 6  # the fewest that give the median an interval


def measure(request: dict, folder: Path) -> dict:
    """Load the model of `request`, and write its outputs to `folder`. Returns seconds and bytes, and the token ids of
    its `probes`."""
    os.environ["OMP_NUM_THREADS"] = str(request["threads"])
    if not request["candidate"] or manifest.needs_torch(request["candidate"]):
        import sentence_transformers  # noqa: F401  imports are not what is measured

    from kerf.core.memory import peak_rss_bytes
    from kerf.evaluate.protocol import of_family
    from kerf.models import families, registry

    def load() -> Any:
        return registry.open_source(request["model"], request["candidate"])

    load_seconds = [_in_child(load) for _ in range(LOADS)]
    opened = load()  # raises what failed in a child
    if not all(load_seconds):
        raise RuntimeError("a process that only loads the model did not finish")
    figures = of_family(request["family"]).run_inference(opened, request, folder)
    ids = families.FAMILIES[request["family"]].read_ids(opened, request["probes"])
    return {**figures, "ids": ids, "load_seconds": load_seconds, "rss_peak_bytes": peak_rss_bytes()}


def _in_child(work: Callable[[], Any], retry: bool = True) -> float | None:
    """Seconds that `work` takes in a forked child, None where it fails; `retry` once if the child is killed.

    No thread pool runs yet, so forking is safe.
    """
    parent = os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            child_process.tie(parent)
            clock = time.perf_counter()
            work()
            os.write(writer, repr(time.perf_counter() - clock).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        seconds = pipe.read()
    _, status = os.waitpid(child, 0)
    if retry and os.WIFSIGNALED(status) and os.WTERMSIG(status) in child_process.FROM_OUTSIDE:
        return _in_child(work, retry=False)
    return float(seconds) if seconds else None


if __name__ == "__main__":
    serve(measure)
