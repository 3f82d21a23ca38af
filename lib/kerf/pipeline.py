"""A chain of steps, from the baseline to a candidate. Every link is kept, so a chain goes on from where it was.

Here, and nowhere else, a step's kind and method decide who does it.
"""

from importlib import import_module
from pathlib import Path

from kerf.config import STEPS, Calibration, check_chain, parse
from kerf.config.base import Parameters
from kerf.config.methods import METHODS
from kerf.models import manifest
from kerf.prune import check as prune_check
from kerf.quantize import check as quantize_check


def build(model: str, steps: list[dict], calibration: Calibration) -> Path | str:
    """Directory of the candidate that `steps` ([{"quantize": {...}}, ...]) make; empty for no steps.

    Raises InputError for a parameter that is not accepted.
    """
    check_chain(steps, "steps")
    pairs = [pair for step in steps for pair in step.items()]
    parsed = [
        (kind, parse(STEPS[kind], values, f"{number}.{kind}"))
        for number, (kind, values) in enumerate(pairs, 1)
    ]
    source: Path | str = ""
    for kind, step in parsed:
        check(model, kind, step, manifest.verify(Path(source))["steps"] if source else [])
        source = _make(model, kind, step, calibration, source)
    return source


def check(model: str, kind: str, step: Parameters, before: list[dict]) -> None:
    """Refuse, before heavy work, a step that this model cannot take after the steps `before`."""
    if kind == "prune":
        prune_check.check(model, step, before)
    if kind == "quantize":
        quantize_check.check(model, step, before, prune_check.shapes_after(model, before))
        if METHODS[step.method].kernel:
            import_module(METHODS[step.method].kernel).check(model, step)


def _make(
    model: str, kind: str, step: Parameters, calibration: Calibration, source: Path | str
) -> Path:
    from kerf.prune.step import prune
    from kerf.quantize.step import quantize
    from kerf.training.step import reconstruct

    if kind == "quantize" and METHODS[step.method].kernel:
        return import_module(METHODS[step.method].kernel).prepare(model, step, calibration, source)
    return {"quantize": quantize, "reconstruct": reconstruct, "prune": prune}[kind](
        model, step, calibration, source
    )
