"""Keys of a `quantize` step: one type for each method. What stands in a type's ClassVars is no key of its method, but read of it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from kerf.config.backends import libraries
from kerf.config.base import (
    MOST,
    Bits,
    Flag,
    Name,
    Parameters,
    Pattern,
    Sweeps,
    nm_pattern,
    of_pattern,
    whole,
)
from kerf.core.errors import listed, refuse
from kerf.tensors.granularity import Granularity, PerChannel, PerGroup, PerTensor

GroupSize = Annotated[
    int | None, Field(ge=2, le=MOST, description=f"2 to {MOST}, a divisor of every layer's columns")
]
Clip = Annotated[Literal["none", "mse", "hessian"], Field(description="none, mse or hessian")]
Embeddings = Annotated[
    Bits | Literal[32, "same"], Field(description="2 to 8, 32 (left in float) or same (as bits)")
]
ScaleDtype = Annotated[Literal["float16", "float32"], Field(description="float16 or float32")]
UnquantizedDtype = Annotated[
    Literal["float32", "float16"], Field(description="float32 or float16, of what is not quantized")
]
ComputeDtype = Annotated[
    Literal["float32", "bfloat16"],
    Field(
        description="float32 or bfloat16, of what a real kernel does not compute in bytes; openvino has both"
    ),
]
MinCosine = Annotated[
    float | None,
    Field(gt=0, lt=1, description="a mean cosine between 0 and 1 that is met on held-back text"),
]


class Quantize(Parameters):
    """What the steps of all methods have in common."""

    nm_pattern = nm_pattern

    def embedding_bits(self) -> float:
        """Bits of the word embeddings, 32 for float."""
        return self.bits if self.embeddings == "same" else self.embeddings

    def grid(self) -> Granularity:
        """What shares one scale and zero_point."""
        if self.granularity == "tensor":
            return PerTensor()
        return PerChannel() if self.group_size is None else PerGroup(self.group_size)


class Grouped(Quantize):
    """Weights on a grid a row, or a group of columns of a row."""

    granularity: Annotated[Literal["channel", "group"], Field(description="channel or group")] = (
        "channel"
    )
    group_size: GroupSize = None
    symmetric: Flag = False
    clip: Clip = "none"
    embeddings: Embeddings = 8
    scale_dtype: ScaleDtype = "float16"
    unquantized_dtype: UnquantizedDtype = "float32"

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, values):
        if isinstance(values, dict) and values.get("granularity") is None:
            values = {
                **values,
                "granularity": "channel" if values.get("group_size") is None else "group",
            }
        return values

    @model_validator(mode="after")
    def _agree(self):
        if (self.granularity == "group") != (self.group_size is not None):
            raise refuse(
                "granularity",
                self.granularity,
                "group together with a group_size, or another without one",
            )
        return self


class Mixed(Grouped):
    """One width for all layers, or a width for each under a limit."""

    bits: Annotated[
        Bits | Literal["mixed"],
        Field(description="a whole number from 2 to 8, 1.6 (ternary) or mixed"),
    ] = 8
    granularity: Annotated[
        Literal["tensor", "channel", "group"], Field(description="tensor, channel or group")
    ] = "channel"
    budget_bytes: Annotated[
        int | None, whole(1, 10**15, ", bytes of the weight file; with bits: mixed")
    ] = None
    min_cosine: MinCosine = None

    @model_validator(mode="before")
    @classmethod
    def _take_part(cls, values):
        return (
            {"embeddings": "same", **values}
            if isinstance(values, dict) and values.get("bits") == "mixed"
            else values
        )

    @model_validator(mode="after")
    def _limit(self):
        for key in ("bits", "embeddings"):
            if getattr(self, key) == 16:
                raise refuse(key, 16, type(self).model_fields[key].description)
        limits = [each for each in (self.budget_bytes, self.min_cosine) if each is not None]
        if (self.bits == "mixed") != (len(limits) == 1):
            raise refuse(
                "bits",
                self.bits,
                "mixed together with either budget_bytes or min_cosine, or a width without them",
            )
        return self


class Rtn(Mixed):
    """Keys of method rtn."""

    sparsity: ClassVar[None] = None
    pattern: ClassVar[None] = None
    method: Literal["rtn"] = "rtn"


class Gptq(Mixed):
    """Keys of method gptq."""

    method: Literal["gptq"] = "gptq"
    act_order: Flag = True
    asymmetric_calibration: Flag = True
    sweeps: Sweeps = 2
    sparsity: Annotated[
        float | None, Field(gt=0, lt=1, description="a share between 0 and 1, or none")
    ] = None
    pattern: Pattern = None

    _share = model_validator(mode="before")(of_pattern)

    @model_validator(mode="after")
    def _one_width(self):
        if self.sparsity is not None and self.bits == "mixed":
            raise refuse(
                "sparsity", self.sparsity, "none with mixed bits; use a prune step instead"
            )
        return self


class Imported(Grouped):
    """Linear layers that something else quantized."""

    sparsity: ClassVar[None] = None
    pattern: ClassVar[None] = None
    bits: Annotated[Literal[2, 3, 4, 8], Field(description="2, 3, 4 or 8")] = 8


class Checkpoint(Imported):
    """Keys of method checkpoint."""

    method: Literal["checkpoint"] = "checkpoint"
    checkpoint: Annotated[Name, Field(description="a GPTQ checkpoint, directory or hub id")]


class Gptqmodel(Imported):
    """Keys of method gptqmodel."""

    method: Literal["gptqmodel"] = "gptqmodel"
    act_order: Flag = True


def _check_kernel(step):
    known = libraries(step.method)
    if step.backend not in known:
        raise refuse("backend", step.backend, f"{listed(known)} with method {step.method}")
    if (
        step.compute_dtype == "bfloat16"
        and step.method != "bfloat16"
        and step.backend != "openvino"
    ):
        accepted = f"float32, or bfloat16 with backend openvino; {step.backend} computes the rest in float32"
        raise refuse("compute_dtype", step.compute_dtype, accepted)
    return step


class WholeRows(Quantize):
    """Weights and inputs on integer kernels, or in bfloat16: one scale a row, which nothing else can be."""

    granularity: ClassVar[str] = "channel"
    group_size: ClassVar[None] = None
    symmetric: ClassVar[bool] = True
    clip: ClassVar[str] = "none"
    scale_dtype: ClassVar[str] = "float16"
    sparsity: ClassVar[None] = None
    pattern: ClassVar[None] = None


class Static(WholeRows):
    """Keys of method static: weights and inputs in INT8, with ranges from calibration text."""

    method: Literal["static"] = "static"
    bits: Annotated[Literal[8], Field(description="8 with method static")] = 8
    embeddings: Embeddings = 8
    unquantized_dtype: UnquantizedDtype = "float32"
    min_cosine: MinCosine = None
    backend: Annotated[
        Name, Field(description="openvino, onnxruntime or torch with method static")
    ] = "openvino"
    compute_dtype: ComputeDtype = "float32"

    _runs = model_validator(mode="after")(_check_kernel)


class Dynamic(WholeRows):
    """Keys of method dynamic: as static, with the range of every token's inputs as it comes."""

    compute_dtype: ClassVar[str] = "float32"
    method: Literal["dynamic"] = "dynamic"
    bits: Annotated[Literal[8], Field(description="8 with method dynamic")] = 8
    embeddings: Embeddings = 8
    unquantized_dtype: UnquantizedDtype = "float32"
    min_cosine: MinCosine = None
    backend: Annotated[Name, Field(description="torch or onnxruntime with method dynamic")] = (
        "torch"
    )

    _runs = model_validator(mode="after")(_check_kernel)


class WeightOnly(Grouped):
    """Keys of method weight_only: weights by GPTQ, unpacked as they are multiplied."""

    min_cosine: ClassVar[None] = None
    sparsity: ClassVar[None] = None
    pattern: ClassVar[None] = None
    method: Literal["weight_only"] = "weight_only"
    bits: Annotated[Literal[4, 8], Field(description="4 or 8 with method weight_only")] = 8
    backend: Annotated[
        Name, Field(description="openvino or onnxruntime with method weight_only")
    ] = "openvino"
    compute_dtype: ComputeDtype = "float32"

    @model_validator(mode="before")
    @classmethod
    def _whole_rows(cls, values):
        return (
            {"symmetric": values.get("bits", 8) != 4, **values}
            if isinstance(values, dict)
            else values
        )

    @model_validator(mode="after")
    def _runs(self):
        if self.backend == "onnxruntime" and (self.group_size or 16) % 16:
            raise refuse("group_size", self.group_size, "a multiple of 16 with backend onnxruntime")
        return _check_kernel(self)

    def gptq(self) -> Gptq:
        """The step that makes the codes."""
        shared = {key: getattr(self, key) for key in Grouped.model_fields}
        return Gptq(bits=self.bits, **shared)


class Bfloat16(WholeRows):
    """Keys of method bfloat16: every product in half the bits."""

    embeddings: ClassVar[int] = 32
    compute_dtype: ClassVar[str] = "bfloat16"
    min_cosine: ClassVar[None] = None
    method: Literal["bfloat16"] = "bfloat16"
    bits: Annotated[Literal[16], Field(description="16 with method bfloat16")] = 16
    unquantized_dtype: UnquantizedDtype = "float16"
    backend: Annotated[Name, Field(description="openvino or torch with method bfloat16")] = (
        "openvino"
    )

    _runs = model_validator(mode="after")(_check_kernel)
