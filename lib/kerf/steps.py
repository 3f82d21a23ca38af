"""The typed parameters: what `calibration` and each kind of step accept, and their defaults.

Every field says in `description` what it accepts; that text is what a refusal shows.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError, model_validator

from kerf.errors import Refused, nearest, refuse


def _width(bits: object) -> object:
    """2 to 8, or 1.6: five ternary codes in a byte."""
    if isinstance(bits, bool) or not (bits == 1.6 or isinstance(bits, int) and 2 <= bits <= 8):
        raise ValueError
    return bits


_Bits = Annotated[int | float, BeforeValidator(_width), Field(description="a whole number from 2 to 8, or 1.6 (ternary)")]


class Parameters(BaseModel):
    """Base: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Calibration(Parameters):
    """Which text a method may look at."""

    texts: Annotated[str, Field(description="news, wiki or a text file, one document a line")] = "news"
    samples: Annotated[int, Field(strict=True, ge=1, description="a whole number from 1")] = 256
    max_length: Annotated[int, Field(strict=True, ge=4, le=8192, description="4 to 8192 tokens")] = 128
    seed: Annotated[int, Field(strict=True, ge=0, description="a whole number from 0")] = 0


class Evaluation(Parameters):
    """Which text a candidate is measured on; the human-rated pairs are always all used."""

    texts: Annotated[str, Field(description="news, wiki or a text file, one document a line")] = "news"
    sentences: Annotated[int, Field(strict=True, ge=2, description="a whole number from 2")] = 400
    passages: Annotated[int, Field(strict=True, ge=2, description="a whole number from 2")] = 500
    contexts: Annotated[int, Field(strict=True, ge=2, description="a whole number from 2; language models")] = 64
    context: Annotated[int, Field(strict=True, ge=16, le=8192, description="16 to 8192 tokens; language models")] = 512
    restored: Annotated[int, Field(strict=True, ge=0, le=8, description="0 to 8 contexts; language models")] = 2


ELSEWHERE = ("checkpoint", "gptqmodel")  # methods whose linear layers something else quantized


def _of_pattern(values):
    """Values of a step with the sparsity that its pattern says."""
    if isinstance(values, dict) and isinstance(values.get("pattern"), str):
        found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", values["pattern"])
        if not found or int(found[1]) >= int(found[2]):
            raise refuse("pattern", values["pattern"], "N:M, as in 2:4, with N below M")
        share = 1 - int(found[1]) / int(found[2])
        if values.get("sparsity") not in (None, share):
            raise refuse("sparsity", values["sparsity"], f"{share:g}, which the pattern says, or none")
        values = {**values, "sparsity": share}
    return values


def _neighbours(self) -> tuple[int, int] | None:
    """(N, M) of the pattern: N kept of every M."""
    return tuple(map(int, self.pattern.split(":"))) if self.pattern else None


class Quantize(Parameters):
    """Keys of a `quantize` step."""

    method: Annotated[
        Literal["rtn", "gptq", "checkpoint", "gptqmodel"], Field(description="rtn, gptq, checkpoint or gptqmodel")
    ] = "rtn"
    bits: Annotated[_Bits | Literal["mixed"], Field(description="a whole number from 2 to 8, 1.6 (ternary) or mixed")] = 8
    granularity: Annotated[
        Literal["tensor", "channel", "group"], Field(description="tensor, channel or group")
    ] = "channel"
    group_size: Annotated[int | None, Field(strict=True, ge=2, description="2 or more, a divisor of every layer's columns")] = None
    symmetric: Annotated[StrictBool, Field(description="true or false")] = False
    clip: Annotated[Literal["none", "mse", "hessian"], Field(description="none, mse or hessian")] = "none"
    embeddings: Annotated[
        _Bits | Literal[32, "same"], Field(description="2 to 8, 32 (left in float) or same (as bits)")
    ] = 8
    scale_dtype: Annotated[Literal["float16", "float32"], Field(description="float16 or float32")] = "float16"
    floats: Annotated[
        Literal["float32", "float16"], Field(description="float32 or float16, of what is not quantized")
    ] = "float32"
    act_order: Annotated[StrictBool, Field(description="true or false; gptq only")] = True
    asymmetric_calibration: Annotated[StrictBool, Field(description="true or false; gptq only")] = True
    sweeps: Annotated[int, Field(strict=True, ge=0, le=20, description="a whole number from 0 to 20; gptq only")] = 2

    sparsity: Annotated[float | None, Field(gt=0, lt=1, description="a share between 0 and 1; gptq only")] = None
    pattern: Annotated[str | None, Field(description="N:M, as in 2:4, with N below M; gptq only")] = None
    budget_bytes: Annotated[int | None, Field(strict=True, ge=1, description="bytes of the weight file; mixed only")] = None
    floor: Annotated[float | None, Field(gt=0, lt=1, description="a mean cosine between 0 and 1; mixed only")] = None
    checkpoint: Annotated[str | None, Field(description="a GPTQ checkpoint, directory or hub id; checkpoint only")] = None

    neighbours = _neighbours

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, values):
        values = _of_pattern(values)
        if isinstance(values, dict) and values.get("granularity") is None:
            values = {**values, "granularity": "channel" if values.get("group_size") is None else "group"}
        if isinstance(values, dict) and values.get("bits") == "mixed":
            values = {"embeddings": "same", **values}
        return values

    @model_validator(mode="after")
    def _agree(self):
        if (self.granularity == "group") != (self.group_size is not None):
            raise refuse("granularity", self.granularity, "group together with a group_size, or another without one")
        if (self.bits == "mixed") != ((self.budget_bytes is None) != (self.floor is None)):
            raise refuse("bits", self.bits, "mixed together with either budget_bytes or floor, or a width without them")
        if self.sparsity is not None and (self.method != "gptq" or self.bits == "mixed"):
            raise refuse("sparsity", self.sparsity, "none but with method gptq and one width; a prune step goes with everything")
        if (self.method == "checkpoint") != (self.checkpoint is not None):
            raise refuse("checkpoint", self.checkpoint, "a directory or hub id with method checkpoint, none without it")
        if self.method in ELSEWHERE and self.bits not in (2, 3, 4, 8):
            raise refuse("bits", self.bits, f"2, 3, 4 or 8 with method {self.method}")
        if self.method in ELSEWHERE and self.granularity == "tensor":
            raise refuse("granularity", self.granularity, f"channel or group with method {self.method}")
        return self

    def embedding_bits(self) -> float:
        """Bits of the word embeddings, 32 for float."""
        return self.bits if self.embeddings == "same" else self.embeddings


class Reconstruct(Parameters):
    """Keys of a `reconstruct` step."""

    steps: Annotated[int, Field(strict=True, ge=1, description="a whole number from 1")] = 400
    joint_steps: Annotated[int, Field(strict=True, ge=0, description="a whole number from 0 (none)")] = 500
    minutes: Annotated[float, Field(gt=0, le=1440, description="more than 0, at most 1440 minutes")] = 9.0
    splices: Annotated[int, Field(strict=True, ge=1, le=100, description="a whole number from 1 to 100")] = 8


STRUCTURES = ("neurons", "heads", "depth")  # methods that leave a smaller model, not zeros


class Prune(Parameters):
    """Keys of a `prune` step."""

    method: Annotated[
        Literal["magnitude", "wanda", "sparsegpt", "neurons", "heads", "depth"],
        Field(description="magnitude, wanda, sparsegpt, neurons, heads or depth"),
    ] = "magnitude"
    sparsity: Annotated[float, Field(gt=0, lt=1, description="a share between 0 and 1, both apart")] = 0.5
    pattern: Annotated[str | None, Field(description="N:M, as in 2:4, with N below M; it decides the sparsity")] = None
    allocation: Annotated[
        Literal["uniform", "sensitivity"], Field(description="uniform, or sensitivity: by what each layer costs; encoders")
    ] = "uniform"
    scope: Annotated[Literal["layer", "global"], Field(description="layer or global; global is magnitude's alone")] = "layer"
    saliency: Annotated[
        Literal["second-order", "activation"], Field(description="second-order or activation; neurons and heads only")
    ] = "second-order"
    asymmetric_calibration: Annotated[StrictBool, Field(description="true or false; sparsegpt only")] = True
    sweeps: Annotated[int, Field(strict=True, ge=0, le=20, description="a whole number from 0 to 20")] = 2

    neighbours = _neighbours
    _implied = model_validator(mode="before")(_of_pattern)

    @model_validator(mode="after")
    def _agree(self):
        if self.scope == "global" and (self.method != "magnitude" or self.pattern):
            raise refuse("scope", self.scope, "layer, or global with method magnitude and no pattern")
        if self.allocation == "sensitivity" and (self.pattern or self.scope == "global" or self.method in STRUCTURES):
            raise refuse("allocation", self.allocation, "uniform, or sensitivity with magnitude, wanda or sparsegpt, scope layer, no pattern")
        if self.saliency != "second-order" and self.method not in ("neurons", "heads"):
            raise refuse("saliency", self.saliency, "second-order, or activation with method neurons or heads")
        if self.method in STRUCTURES and self.pattern:
            raise refuse("pattern", self.pattern, f"none with method {self.method}, which leaves whole {self.method} out")
        return self


STEPS: dict[str, type[Parameters]] = {"quantize": Quantize, "reconstruct": Reconstruct, "prune": Prune}


def check_chain(steps: list[dict], path: str) -> None:
    """Refuse a chain whose steps, each one kind with its values, cannot follow one another."""
    kinds = [kind for step in steps for kind in step]
    for number, (kind, values) in enumerate((pair for step in steps for pair in step.items()), 1):
        if number < len(kinds) and kind == "prune" and isinstance(values, dict) and values.get("method") == "depth":
            raise refuse(f"{path}.{number}.method", "depth", "the last step: what comes after would not find the blocks by their names")
        if number > 1 and kind == "quantize" and isinstance(values, dict) and values.get("sparsity") is not None:
            raise refuse(f"{path}.{number}.sparsity", values["sparsity"], "none after another step: a prune step before it does the same")
        if kind == "reconstruct" and not {"quantize", "prune"} & {*kinds[: number - 1]}:
            raise refuse(f"{path}.{number}", kind, "a step after quantize or prune")


def parse(kind: type[Parameters], values: object, path: str) -> Parameters:
    """Validate `values`; Refused names the full path of the first wrong one."""
    if not isinstance(values, dict):
        raise refuse(path, values, f"keys and values; accepted: {', '.join(kind.model_fields)}")
    for key in values:
        if key not in kind.model_fields:
            raise refuse(f"{path}.{key}", values[key], f"no such key; {nearest(key, kind.model_fields)}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _refusal(kind, error, path) from None


def _refusal(kind: type[Parameters], error: ValidationError, path: str) -> Refused:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Refused):
        return Refused(f"{path}.{cause}")
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
        if step.pattern and columns % step.neighbours()[1]:
            raise refuse("pattern", step.pattern, f"N:M with M a divisor of the {columns} columns of {name}")
