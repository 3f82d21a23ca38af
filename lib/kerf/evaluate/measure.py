"""A fresh process that loads one model, answers the evaluation texts, and says what that took.

Run as `python -m kerf.evaluate.measure REQUEST.json`: the request names the model or candidate, the
texts, threads, batch size and order; answers and figures are written beside it. Load times come from
children forked right after the imports: each is a fresh process to the loader, and imports stand apart.
"""

import json
import os
import sys
import time
from pathlib import Path

from kerf.core import child_process
from kerf.models import manifest

LOADS = 6  # the fewest that give the median an interval


def measure(request: dict, folder: Path) -> dict:
    """Load the model of `request`, and write its answers beside the request. Returns the figures."""
    os.environ["OMP_NUM_THREADS"] = str(request["threads"])
    clock = time.perf_counter()
    if not request["candidate"] or manifest.needs_torch(request["candidate"]):
        import sentence_transformers  # noqa: F401  imports are not what is measured

    from kerf.core.memory import peak_rss_bytes
    from kerf.evaluate.by_family import of_family
    from kerf.models import registry

    import_seconds = time.perf_counter() - clock

    def opened():
        return registry.open_source(request["model"], request["candidate"])

    load_seconds = [_in_child(opened) for _ in range(LOADS)]
    model = opened()  # what kept a child from opening it is raised here
    if not all(load_seconds):
        raise RuntimeError("a process that only loads the model did not finish")
    answered = of_family(request["kind"]).answer(model, request, folder)
    return {
        "import_seconds": import_seconds,
        "load_seconds": load_seconds,
        **answered,
        "rss_peak_bytes": peak_rss_bytes(),
    }


def _in_child(work, again: bool = True) -> float | None:
    """Seconds that `work` takes in a forked child, None where it fails; a child that is killed is tried `again`, once.

    No thread pool runs yet, so forking is safe here.
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
    if again and os.WIFSIGNALED(status) and os.WTERMSIG(status) in child_process.FROM_OUTSIDE:
        return _in_child(work, again=False)
    return float(seconds) if seconds else None


if __name__ == "__main__":
    path = Path(sys.argv[1])
    figures = measure(json.loads(path.read_text()), path.parent)
    (path.parent / "figures.json").write_text(json.dumps(figures))
    os._exit(0)  # taking torch apart in order takes a second and measures nothing
