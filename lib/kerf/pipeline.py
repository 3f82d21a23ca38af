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
    source: Path | str = ""
    for number, step in enumerate(steps, 1):
        ((kind, values),) = step.items()
        source = _STAGES[kind](model, parse(STEPS[kind], values, f"{number}.{kind}"), calibration, source)
    return source


_STAGES = {"quantize": quantize, "reconstruct": reconstruct, "prune": prune}
