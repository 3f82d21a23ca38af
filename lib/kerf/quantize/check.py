"""What a `quantize` step needs of the model; refused before torch is imported where it can be."""

from importlib import import_module
from types import ModuleType
from typing import Any

from kerf.config import check_divides, check_pattern
from kerf.config.methods import METHODS
from kerf.models import coverage, registry


def check(model: str, step: Any, before: list[dict], shapes: dict[str, list[int]]) -> None:
    """Refuse, before heavy work, a step that this model cannot take after the steps `before`, which leave layers of these shapes."""
    if step.group_size:
        check_divides(step.group_size, shapes, "group_size")
    check_pattern(step, shapes)
    coverage.check(registry.describe(model), step, step.embedding_bits() != 32)
    if imported := imported_by(step):
        imported.check(model, step, first=not before)


def imported_by(step: Any) -> ModuleType | None:
    """The module that reads layers quantized by another program, for methods that do."""
    module = METHODS[step.method].imported
    return import_module(module) if module else None
