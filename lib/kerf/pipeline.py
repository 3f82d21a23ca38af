"""A chain of steps, from the baseline to a candidate. Every link is kept, so a chain goes on from where it was."""

from pathlib import Path

from kerf.prune.stage import prune
from kerf.quantize.stage import quantize
from kerf.reconstruct.stage import reconstruct
from kerf.steps import STEPS, Calibration, check_chain, parse


def build(model: str, steps: list[dict], calibration: Calibration) -> Path | str:
    """Directory of the candidate that `steps` ([{"quantize": {...}}, ...]) make; empty for no steps.

    Raises Refused for a parameter that is not accepted.
    """
    check_chain(steps, "steps")
    pairs = [pair for step in steps for pair in step.items()]
    parsed = [(kind, parse(STEPS[kind], values, f"{number}.{kind}")) for number, (kind, values) in enumerate(pairs, 1)]
    source: Path | str = ""
    for kind, step in parsed:
        source = _STAGES[kind](model, step, calibration, source)
    return source


_STAGES = {"quantize": quantize, "reconstruct": reconstruct, "prune": prune}
