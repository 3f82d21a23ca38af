"""Speedup of a candidate with smaller matrices or a real kernel: it and the baseline in turn, in one fresh process.

Run as `python -m kerf.evaluate.latency REQUEST.json`. The model that is timed first alternates from round to round.
"""

import time
from pathlib import Path

import numpy as np

from kerf.config import STRUCTURES
from kerf.core.scratch import scratch
from kerf.evaluate import stats as st
from kerf.evaluate.fidelity import row
from kerf.evaluate.measured_process import run_measured, serve
from kerf.models import manifest

ROUNDS = 15


def is_faster(candidate: str | Path) -> bool:
    """Whether a candidate may claim speed: whole structures are removed, or a real kernel runs it."""
    contents = manifest.verify(Path(candidate))
    methods = {step.get("prune", {}).get("method") for step in contents["steps"]}
    return "backend" in contents or not methods.isdisjoint(STRUCTURES)


def metric(request: dict) -> dict:
    """Row `speedup`: median and interval of the baseline's seconds over the candidate's, in each round.

    request: model, candidate, family, threads, and the family's `latency_input`. Raises RuntimeError when the process dies.
    """
    with scratch() as folder:
        ratios = np.array(run_measured("kerf.evaluate.latency", request, folder))
    return row("speedup", *st.median_interval(ratios), 1.0, len(ratios))


def measure(request: dict, folder: Path | None = None) -> list[float]:
    """Per-round speedups, after one warm-up round."""
    from kerf.evaluate.protocol import of_family
    from kerf.models import registry

    predict_once = of_family(request["family"]).predict_once
    models = [registry.open_source(request["model"], path) for path in ("", request["candidate"])]
    seconds = np.zeros((ROUNDS + 1, 2))
    for number in range(ROUNDS + 1):
        for index in (0, 1) if number % 2 else (1, 0):
            clock = time.perf_counter()
            predict_once(models[index], request["latency_input"])
            seconds[number, index] = time.perf_counter() - clock
    return (seconds[1:, 0] / seconds[1:, 1]).tolist()


if __name__ == "__main__":
    serve(measure)
