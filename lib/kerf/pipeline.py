"""A chain of steps, from the baseline to a candidate. Every link is kept, so a chain goes on from where it was."""

from pathlib import Path

from kerf.prune.step import prune
from kerf.quantize.step import quantize
from kerf.training.step import reconstruct
from kerf.config import Calibration, STEPS, check_chain, parse


def build(model: str, steps: list[dict], calibration: Calibration) -> Path | str:
    """Directory of the candidate that `steps` ([{"quantize": {...}}, ...]) make; empty for no steps.

    Raises InputError for a parameter that is not accepted.
    """
    check_chain(steps, "steps")
    pairs = [pair for step in steps for pair in step.items()]
    parsed = [(kind, parse(STEPS[kind], values, f"{number}.{kind}")) for number, (kind, values) in enumerate(pairs, 1)]
    source: Path | str = ""
    for kind, step in parsed:
        source = _STAGES[kind](model, step, calibration, source)
    return source


_STAGES = {"quantize": quantize, "reconstruct": reconstruct, "prune": prune}
