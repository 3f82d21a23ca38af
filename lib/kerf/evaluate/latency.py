"""How much faster a candidate with smaller matrices or a real kernel is: it and the baseline in turn, in one fresh process.

Run as `python -m kerf.evaluate.latency REQUEST.json`; the request names both models, what they are asked,
and the threads. Who goes first changes from round to round.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from kerf.config import STRUCTURES
from kerf.core.scratch import scratch
from kerf.evaluate import stats as st
from kerf.evaluate.fidelity import row
from kerf.evaluate.measured_process import run_measured
from kerf.models import manifest

ROUNDS = 15


def is_faster(candidate: str | Path) -> bool:
    """Whether a candidate may claim speed: whole structures are gone, or a real kernel runs it."""
    card = manifest.verify(Path(candidate))
    return "backend" in card or any(
        step.get("prune", {}).get("method") in STRUCTURES for step in card["steps"]
    )


def metric(request: dict) -> dict:
    """Row `speedup`: median of the rounds' ratios, seconds of the baseline over the candidate's, and its interval.

    request: model, candidate, kind, threads, and `asked` as the kind's `ask` takes it.
    Raises RuntimeError when the process dies.
    """
    with scratch() as folder:
        path = Path(folder, "request.json")
        path.write_text(json.dumps(request))
        run_measured("kerf.evaluate.latency", path)
        ratios = np.array(json.loads(Path(folder, "ratios.json").read_text()))
    return row("speedup", *st.median_interval(ratios), 1.0, len(ratios))


def measure(request: dict) -> list[float]:
    """Per-round speedups, after one warm-up round."""
    from kerf.evaluate.by_family import of_family
    from kerf.models import registry

    ask = of_family(request["kind"]).ask
    both = [registry.open_source(request["model"], source) for source in ("", request["candidate"])]
    seconds = np.zeros((ROUNDS + 1, 2))
    for number in range(ROUNDS + 1):
        for place in (0, 1) if number % 2 else (1, 0):
            clock = time.perf_counter()
            ask(both[place], request["asked"])
            seconds[number, place] = time.perf_counter() - clock
    return (seconds[1:, 0] / seconds[1:, 1]).tolist()


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.with_name("ratios.json").write_text(json.dumps(measure(json.loads(path.read_text()))))
    os._exit(0)  # as in kerf.evaluate.measure
