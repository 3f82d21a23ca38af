"""What a `quantize` step needs of the model; refused before torch is imported where it can be."""

from importlib import import_module
from types import ModuleType

from kerf.config import check_divides, check_pattern
from kerf.config.methods import METHODS
from kerf.config.quantize import Quantize


def check(model: str, step: Quantize, before: list[dict], shapes: dict[str, list[int]]) -> None:
    """Refuse, before heavy work, a step that this model cannot take after the steps `before`, which leave `shapes`."""
    if step.group_size:
        check_divides(step.group_size, shapes, "group_size")
    check_pattern(step, shapes)
    if imported := imported_by(step):
        imported.check(model, step, first=not before)


def imported_by(step: Quantize) -> ModuleType | None:
    """The module that takes layers which something else quantized, if the method does."""
    module = METHODS[step.method].imported
    return import_module(module) if module else None
