"""Chains of steps: what may follow what, and how a refusal names the first wrong value."""

from typing import Annotated

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from kerf.config.base import Parameters
from kerf.config.by_method import OLD_KEYS, ByMethod
from kerf.config.methods import METHODS, PRUNING_METHODS, STEPS
from kerf.config.prune import Prune
from kerf.config.quantize import Quantize
from kerf.core.errors import InputError, listed, nearest, refuse


def check_chain(steps: list[dict], path: str) -> None:
    """Refuse a chain whose steps, each one kind with its values, cannot follow one another."""
    for number, step in enumerate(steps, 1):
        if not isinstance(step, dict) or not step or not set(step) <= set(STEPS):
            raise refuse(
                f"{path}.{number}",
                step,
                f"one kind of step with its values, as in {{quantize: {{bits: 4}}}}; kinds: {', '.join(STEPS)}",
            )
    pairs = [pair for step in steps for pair in step.items()]
    for number, (kind, values) in enumerate(pairs, 1):
        values = values if isinstance(values, dict) else {}
        method = str(values.get("method"))
        if number < len(pairs) and kind == "prune" and method == "depth":
            raise refuse(
                f"{path}.{number}.method",
                "depth",
                "the last step: what comes after would not find the blocks by their names",
            )
        if number > 1 and kind == "quantize" and values.get("sparsity") is not None:
            raise refuse(
                f"{path}.{number}.sparsity",
                values["sparsity"],
                "none: `sparsity` is only allowed in the first step; add a prune step instead",
            )
        if (
            number < len(pairs)
            and kind == "quantize"
            and method in METHODS
            and METHODS[method].kernel
        ):
            raise refuse(
                f"{path}.{number}.method",
                method,
                "the last step: what a kernel runs is not changed any more",
            )
        if kind == "reconstruct" and not {"quantize", "prune"} & {
            kind for kind, _ in pairs[: number - 1]
        }:
            raise refuse(f"{path}.{number}", kind, "a step after quantize or prune")


def parse(kind: type[Parameters] | ByMethod, values: object, path: str) -> Parameters:
    """Validate `values`; InputError names the full path of the first wrong one."""
    if not isinstance(values, dict):
        raise refuse(path, values, f"keys and values; accepted: {', '.join(kind.model_fields)}")
    chosen = kind.type_of(values, path) if isinstance(kind, ByMethod) else kind
    for key in values:
        if key not in chosen.model_fields:
            raise refuse(f"{path}.{key}", values[key], _unknown(str(key), kind, chosen))
    try:
        return chosen.model_validate(values)
    except ValidationError as error:
        raise _refusal(chosen, error, path) from None


def _unknown(key: str, kind: type[Parameters] | ByMethod, chosen: type[Parameters]) -> str:
    """What is accepted in the place of a key that is none."""
    if OLD_KEYS.get(key) in kind.model_fields:
        return f"{OLD_KEYS[key]}, which it is called now"
    return (
        kind.unknown(key, chosen)
        if isinstance(kind, ByMethod)
        else f"no such key; {nearest(key, chosen.model_fields)}"
    )


def fields_of(key: str) -> list[FieldInfo]:
    """The fields of a key, of every kind of step and every method that has it."""
    types = [
        entry.parameters for methods in (METHODS, PRUNING_METHODS) for entry in methods.values()
    ]
    types += [kind for kind in STEPS.values() if not isinstance(kind, ByMethod)]
    return [each.model_fields[key] for each in types if key in each.model_fields]


def check_value(key: str, value: object, path: str) -> None:
    """Refuse a value that no kind of step takes for `key`, and a key that none has."""
    fields = fields_of(key)
    if not fields:
        known = {name for kind in STEPS.values() for name in kind.model_fields}
        accepted = (
            f"{OLD_KEYS[key]}, which it is called now"
            if key in OLD_KEYS
            else f"no such key of a step; {nearest(key, {*known, 'candidate'})}"
        )
        raise refuse(path, value, accepted)
    for field in fields:
        try:
            return TypeAdapter(Annotated[field.annotation, field]).validate_python(
                value, strict=True
            )
        except ValidationError:
            continue
    said = dict.fromkeys(field.description for field in fields if field.description)
    raise refuse(path, value, " or ".join(said) or listed((*METHODS, *PRUNING_METHODS)))


def _refusal(kind: type[Parameters], error: ValidationError, path: str) -> InputError:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return InputError(f"{path}.{cause}")
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return InputError(f"{path}.{key} is missing: {kind.model_fields[key].description}")
    field = kind.model_fields[key]
    return refuse(f"{path}.{key}", first["input"], field.description or str(first["msg"]))


def check_divides(group_size: int, linears: dict[str, list[int]], path: str) -> None:
    """Refuse a group size that does not divide every layer's columns; offer those that do."""
    bad = next((name for name, (_, columns) in linears.items() if columns % group_size), None)
    if bad:
        columns = {columns for _, columns in linears.values()}
        fits = [
            size for size in range(4, min(columns) + 1, 2) if not any(c % size for c in columns)
        ]
        offered = ", ".join(map(str, fits)) or "none: use granularity channel"
        raise refuse(
            path,
            group_size,
            f"a divisor of the {linears[bad][1]} columns of {bad}; these divide: {offered}",
        )


def check_pattern(step: Quantize | Prune, linears: dict[str, list[int]]) -> None:
    """Refuse a pattern N:M whose M does not divide every layer's columns."""
    for name, (_, columns) in linears.items():
        if step.pattern and columns % step.nm_pattern()[1]:
            raise refuse(
                "pattern", step.pattern, f"N:M with M a divisor of the {columns} columns of {name}"
            )
