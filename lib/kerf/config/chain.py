"""Validation of steps: of their keys, of their order, and of keys that have to fit the shapes of a model's layers."""

import math
from typing import Annotated, Any, Union

from pydantic import TypeAdapter, ValidationError

from kerf.config.base import Parameters, StepParameters
from kerf.config.methods import METHODS, OLD_KEYS, PRUNING_METHODS, STEPS, ByMethod, accepted_key
from kerf.core.errors import InputError, listed, nearest, refuse

EXAMPLE = "one kind of step with its values, as in {quantize: {bits: 4}}"
DEPTH_LAST = "the last step: a later step would not find the blocks by their names"
KERNEL_LAST = "the last step: the layers of a real kernel cannot be changed any more"
FIRST_ALONE = "none: `sparsity` is only allowed in the first step; add a prune step instead"


def check_chain(steps: list[dict], path: str) -> None:
    """Raise InputError for a chain of steps, each {kind: values}, whose order is not possible."""
    for number, step in enumerate(steps, 1):
        if not isinstance(step, dict) or not step or not set(step) <= set(STEPS):
            raise refuse(f"{path}.{number}", step, f"{EXAMPLE}; kinds: {', '.join(STEPS)}")
    pairs = [pair for step in steps for pair in step.items()]
    for number, (kind, values) in enumerate(pairs, 1):
        values = values if isinstance(values, dict) else {}
        method, sparsity = str(values.get("method")), values.get("sparsity")
        place, last = f"{path}.{number}", number == len(pairs)
        if kind == "quantize" and number > 1 and sparsity is not None:
            raise refuse(f"{place}.sparsity", sparsity, FIRST_ALONE)
        if kind == "quantize" and not last and method in METHODS and METHODS[method].kernel:
            raise refuse(f"{place}.method", method, KERNEL_LAST)
        if kind == "prune" and method == "depth" and not last:
            raise refuse(f"{place}.method", method, DEPTH_LAST)
        if kind == "reconstruct" and {kind for kind, _ in pairs[: number - 1]} <= {"reconstruct"}:
            raise refuse(place, kind, "a step after quantize or prune")


def parse(kind: type[Parameters] | ByMethod, values: object, path: str) -> Any:
    """Validate the keys of a section or step. Raises InputError with the full path of the first wrong one."""
    if not isinstance(values, dict):
        raise refuse(path, values, f"keys and values; accepted: {', '.join(kind.model_fields)}")
    keys = kind.type_of(values, path) if isinstance(kind, ByMethod) else kind
    for key in values:
        if key not in keys.model_fields:
            raise refuse(f"{path}.{key}", values[key], accepted_key(str(key), kind, keys))
    try:
        return keys.model_validate(values)
    except ValidationError as errors:
        first = errors.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        raise InputError(f"{path}.{cause}")
    key = str(first["loc"][0])
    accepted = keys.model_fields[key].description or str(first["msg"])
    if first["type"] == "missing":
        raise InputError(f"{path}.{key} is missing: {accepted}")
    raise refuse(f"{path}.{key}", first["input"], accepted)


def check_value(key: str, value: object, path: str) -> None:
    """Raise InputError for a key that no kind of step has, and for a value that none of them accepts."""
    kinds = [entry.parameters for entry in (*METHODS.values(), *PRUNING_METHODS.values())]
    kinds += [kind for kind in STEPS.values() if not isinstance(kind, ByMethod)]
    fields = [kind.model_fields[key] for kind in kinds if key in kind.model_fields]
    if not fields and key in OLD_KEYS:
        raise refuse(path, value, f"{OLD_KEYS[key]}, which it is called now")
    if not fields:
        known = {name for kind in kinds for name in kind.model_fields}
        raise refuse(path, value, f"no such key of a step; {nearest(key, {*known, 'candidate'})}")
    types: Any = Union[tuple(Annotated[field.annotation, field] for field in fields)]  # noqa: UP007
    try:
        TypeAdapter(types).validate_python(value, strict=True)
    except ValidationError:
        descriptions = dict.fromkeys(field.description for field in fields if field.description)
        accepted = " or ".join(descriptions) or listed((*METHODS, *PRUNING_METHODS))
        raise refuse(path, value, accepted) from None


def check_divides(group_size: int, linears: dict[str, list[int]], path: str) -> None:
    """Raise InputError for a group size that does not divide the columns of every layer: name -> [rows, columns]."""
    common = math.gcd(*(columns for _, columns in linears.values()))
    for name, (_, columns) in linears.items():
        if columns % group_size:
            fitting = [str(size) for size in range(4, common + 1, 2) if common % size == 0]
            offer = ", ".join(fitting) or "none: use granularity channel"
            accepted = f"a divisor of the {columns} columns of {name}; these divide: {offer}"
            raise refuse(path, group_size, accepted)


def check_pattern(step: StepParameters, linears: dict[str, list[int]]) -> None:
    """Raise InputError for a pattern N:M whose M does not divide every layer's columns."""
    pattern = step.nm_pattern()
    for name, (_, columns) in linears.items():
        if pattern and columns % pattern[1]:
            accepted = f"N:M with M a divisor of the {columns} columns of {name}"
            raise refuse("pattern", step.pattern, accepted)
