"""A chain of steps, from the baseline to a candidate; every intermediate candidate is kept as an artifact.

Here, and nowhere else, a step's kind and method decide which module runs it.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from kerf.config import STEPS, Calibration, check_chain, parse
from kerf.config.methods import METHODS
from kerf.core.errors import refuse
from kerf.core.registry import resolved
from kerf.models import manifest, registry
from kerf.models.families import detection
from kerf.prune import check as prune_check
from kerf.quantize import check as quantize_check

RUN = {
    "quantize": "kerf.quantize.step:quantize",
    "prune": "kerf.prune.step:prune",
    "reconstruct": "kerf.training.step:reconstruct",
}


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
        if kernel := _kernel(kind, step):
            source = import_module(kernel).prepare(model, step, calibration, source)
        else:
            source = resolved(RUN[kind])(model, step, calibration, source)
    return source


def check(model: str, kind: str, step: Any, before: list[dict]) -> None:
    """Refuse, before heavy work, a step that this model cannot take after the steps `before`."""
    if detection.is_static(registry.resolve(model)):
        method = getattr(step, "method", kind)
        if kind != "quantize" or method != "rtn" or step.bits == "mixed":
            refused = "bits" if method == "rtn" else "method"
            accepted = (
                "rtn with one number of bits: static embeddings are a table, without linear layers"
            )
            raise refuse(refused, getattr(step, refused, method), accepted)
    if kind == "prune":
        prune_check.check(model, step, before)
    if kind == "quantize":
        quantize_check.check(model, step, before, prune_check.shapes_after(model, before))
    if kernel := _kernel(kind, step):
        import_module(kernel).check(model, step)


def _kernel(kind: str, step: Any) -> str:
    """The module that makes candidates for a real kernel, if the step's method has one."""
    return METHODS[step.method].kernel if kind == "quantize" else ""
