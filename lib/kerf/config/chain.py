"""Chains of steps: what may follow what, and how a refusal names the first wrong value."""

from typing import Annotated

from pydantic import TypeAdapter, ValidationError

from kerf.core.errors import InputError, nearest, refuse
from kerf.config.base import Parameters
from kerf.config.prune import Prune, Reconstruct
from kerf.config.quantize import Quantize, KERNEL_METHODS

STEPS: dict[str, type[Parameters]] = {"quantize": Quantize, "reconstruct": Reconstruct, "prune": Prune}


def check_chain(steps: list[dict], path: str) -> None:
    """Refuse a chain whose steps, each one kind with its values, cannot follow one another."""
    for number, step in enumerate(steps, 1):
        if not isinstance(step, dict) or not step or not set(step) <= set(STEPS):
            raise refuse(f"{path}.{number}", step, f"one kind of step with its values, as in {{quantize: {{bits: 4}}}}; kinds: {', '.join(STEPS)}")
    kinds = [kind for step in steps for kind in step]
    for number, (kind, values) in enumerate((pair for step in steps for pair in step.items()), 1):
        if number < len(kinds) and kind == "prune" and isinstance(values, dict) and values.get("method") == "depth":
            raise refuse(f"{path}.{number}.method", "depth", "the last step: what comes after would not find the blocks by their names")
        if number > 1 and kind == "quantize" and isinstance(values, dict) and values.get("sparsity") is not None:
            raise refuse(f"{path}.{number}.sparsity", values["sparsity"], "none after another step: a prune step before it does the same")
        if number < len(kinds) and kind == "quantize" and isinstance(values, dict) and str(values.get("method")) in KERNEL_METHODS:
            raise refuse(f"{path}.{number}.method", values["method"], "the last step: what a kernel runs is not changed any more")
        if kind == "reconstruct" and not {"quantize", "prune"} & {*kinds[: number - 1]}:
            raise refuse(f"{path}.{number}", kind, "a step after quantize or prune")


def parse(kind: type[Parameters], values: object, path: str) -> Parameters:
    """Validate `values`; InputError names the full path of the first wrong one."""
    if not isinstance(values, dict):
        raise refuse(path, values, f"keys and values; accepted: {', '.join(kind.model_fields)}")
    for key in values:
        if key not in kind.model_fields:
            raise refuse(f"{path}.{key}", values[key], f"no such key; {nearest(key, kind.model_fields)}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _refusal(kind, error, path) from None


def check_value(key: str, value: object, path: str) -> None:
    """Refuse a value that no kind of step takes for `key`, and a key that none has."""
    fields = [kind.model_fields[key] for kind in STEPS.values() if key in kind.model_fields]
    if not fields:
        known = {name for kind in STEPS.values() for name in kind.model_fields}
        raise refuse(path, value, f"no such key of a step; {nearest(key, {*known, 'candidate'})}")
    for field in fields:
        try:
            return TypeAdapter(Annotated[field.annotation, field]).validate_python(value, strict=True)
        except ValidationError:
            continue
    raise refuse(path, value, " or ".join(dict.fromkeys(field.description for field in fields)))


def _refusal(kind: type[Parameters], error: ValidationError, path: str) -> InputError:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return InputError(f"{path}.{cause}")
    key = str(first["loc"][0])
    field = kind.model_fields[key]
    return refuse(f"{path}.{key}", error.errors()[0]["input"], field.description or str(first["msg"]))


def check_divides(group_size: int, linears: dict[str, list[int]], path: str) -> None:
    """Refuse a group size that does not divide every layer's columns; offer those that do."""
    bad = next((name for name, (_, columns) in linears.items() if columns % group_size), None)
    if bad:
        columns = {columns for _, columns in linears.values()}
        fits = [size for size in range(4, min(columns) + 1, 2) if not any(c % size for c in columns)]
        offered = ", ".join(map(str, fits)) or "none: use granularity channel"
        raise refuse(path, group_size, f"a divisor of the {linears[bad][1]} columns of {bad}; these divide: {offered}")


def check_pattern(step: Quantize | Prune, linears: dict[str, list[int]]) -> None:
    """Refuse a pattern N:M whose M does not divide every layer's columns."""
    for name, (_, columns) in linears.items():
        if step.pattern and columns % step.nm_pattern()[1]:
            raise refuse("pattern", step.pattern, f"N:M with M a divisor of the {columns} columns of {name}")
