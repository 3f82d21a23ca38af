"""Keys of a `quantize` step, one type per method. A type's docstring is the help of its method."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from kerf.config.backends import BACKENDS
from kerf.config.base import (
    MOST,
    Bits,
    Flag,
    Name,
    Pattern,
    Shrinkage,
    StepParameters,
    Sweeps,
    accepts,
    whole,
)
from kerf.core.errors import listed, refuse
from kerf.tensors.granularity import Granularity, PerChannel, PerGroup, PerTensor

UnquantizedDtype = Annotated[Literal["float32", "float16"], accepts("float32 or float16")]
ComputeDtype = Annotated[
    Literal["float32", "bfloat16"], accepts("float32, or with openvino bfloat16, of float layers")
]
Embeddings = Annotated[
    Bits | Literal[32, "same"], accepts("2 to 8, 32 (left in float) or same (as bits)")
]
MixedBits = Annotated[
    Bits | Literal["mixed"], accepts("a whole number from 2 to 8, 1.6 (ternary) or mixed")
]
AnyGrid = Annotated[Literal["tensor", "channel", "group"], accepts("tensor, channel or group")]
Budget = Annotated[int | None, whole(1, 10**15, ", bytes of the weight file; with bits: mixed")]
Share = Annotated[float | None, accepts("a share between 0 and 1, or none", gt=0, lt=1)]
MinCosine = Annotated[float | None, accepts("a held-out mean cosine between 0 and 1", gt=0, lt=1)]


class Quantize(StepParameters):
    """Base of the keys of all methods."""

    def embedding_bits(self) -> float:
        """Bits of the word embeddings, 32 for float."""
        return self.bits if self.embeddings == "same" else self.embeddings

    def grid(self) -> Granularity:
        """The granularity of scale and zero_point."""
        if self.granularity == "tensor":
            return PerTensor()
        return PerChannel() if self.group_size is None else PerGroup(self.group_size)

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if (self.granularity == "group") != (self.group_size is not None):
            accepted = "group together with a group_size, or another without one"
            raise refuse("granularity", self.granularity, accepted)
        limits = (self.budget_bytes is not None) + (self.min_cosine is not None)
        if self.backend is None and limits != (self.bits == "mixed"):
            accepted = "mixed together with either budget_bytes or min_cosine, or a number alone"
            raise refuse("bits", self.bits, accepted)
        if self.bits == "mixed" and self.sparsity is not None:
            raise refuse("sparsity", self.sparsity, "none with mixed bits; use a prune step")
        if self.backend is None:
            return self
        known = [name for name, backend in BACKENDS.items() if self.method in backend.methods]
        if self.backend not in known:
            raise refuse("backend", self.backend, f"{listed(known)} with method {self.method}")
        if self.backend == "onnxruntime" and (self.group_size or 16) % 16:
            raise refuse("group_size", self.group_size, "a multiple of 16 with backend onnxruntime")
        bfloat16 = self.compute_dtype == "bfloat16" and self.method != "bfloat16"
        if bfloat16 and self.backend != "openvino":
            accepted = "float32, or bfloat16 with backend openvino"
            rest = f"{self.backend} computes the rest in float32"
            raise refuse("compute_dtype", self.compute_dtype, f"{accepted}; {rest}")
        return self


class Grouped(Quantize):
    """Weights with one scale per row, or per group of columns of a row."""

    granularity: Annotated[Literal["channel", "group"], accepts("channel or group")] = "channel"
    group_size: Annotated[int | None, whole(2, MOST, ", a divisor of every layer's columns")] = None
    symmetric: Flag = False
    clip: Annotated[Literal["none", "mse", "hessian"], accepts("none, mse or hessian")] = "none"
    embeddings: Embeddings = 8
    scale_dtype: Annotated[Literal["float16", "float32"], accepts("float16 or float32")] = "float16"
    unquantized_dtype: UnquantizedDtype = "float32"

    @classmethod
    def implied(cls, values: dict) -> dict:
        """With the granularity that a group size implies."""
        values = {**super().implied(values)}
        if values.get("granularity") is None:
            values["granularity"] = "channel" if values.get("group_size") is None else "group"
        return values


class Mixed(Grouped):
    """One bit width for all layers, or one for each layer under a limit."""

    bits: MixedBits = 8
    granularity: AnyGrid = "channel"  # type: ignore[assignment]  # more values than before
    budget_bytes: Budget = None
    min_cosine: MinCosine = None

    @classmethod
    def implied(cls, values: dict) -> dict:
        """With the embeddings among the layers whose bits are mixed."""
        default = {"embeddings": "same"} if values.get("bits") == "mixed" else {}
        return super().implied({**default, **values})


class Rtn(Mixed):
    """Round to nearest."""

    method: Literal["rtn"] = "rtn"


class Gptq(Mixed):
    """Column by column with error feedback (Frantar et al. 2022)."""

    method: Literal["gptq"] = "gptq"
    act_order: Flag = True
    asymmetric_calibration: Flag = True
    shrinkage: Shrinkage = "auto"
    sweeps: Sweeps = 2
    sparsity: Share = None
    pattern: Pattern = None


class Checkpoint(Grouped):
    """A GPTQ checkpoint of this language model."""

    method: Literal["checkpoint"] = "checkpoint"
    bits: Annotated[Literal[2, 3, 4, 8], accepts("2, 3, 4 or 8")] = 8
    checkpoint: Annotated[Name, accepts("a GPTQ checkpoint, directory or hub id")]


class Gptqmodel(Grouped):
    """GPTQModel, after `make peers`."""

    method: Literal["gptqmodel"] = "gptqmodel"
    bits: Annotated[Literal[2, 3, 4, 8], accepts("2, 3, 4 or 8")] = 8
    act_order: Flag = True


class Static(Quantize):
    """Weights and inputs in INT8 on a real kernel, ranges from calibration text; encoders, rerankers."""

    method: Literal["static"] = "static"
    bits: Annotated[Literal[8], accepts("8 with method static")] = 8
    embeddings: Embeddings = 8
    unquantized_dtype: UnquantizedDtype = "float32"
    min_cosine: MinCosine = None
    backend: Annotated[Name, accepts("openvino, onnxruntime or torch")] = "openvino"
    compute_dtype: ComputeDtype = "float32"


class Dynamic(Quantize):
    """Weights and inputs in INT8 on a real kernel, ranges of every token as it comes; encoders, rerankers."""

    method: Literal["dynamic"] = "dynamic"
    bits: Annotated[Literal[8], accepts("8 with method dynamic")] = 8
    embeddings: Embeddings = 8
    unquantized_dtype: UnquantizedDtype = "float32"
    min_cosine: MinCosine = None
    backend: Annotated[Name, accepts("torch or onnxruntime")] = "torch"


class WeightOnly(Grouped):
    """8 or 4 bits that a real kernel unpacks as it multiplies; encoders, rerankers."""

    method: Literal["weight_only"] = "weight_only"
    bits: Annotated[Literal[4, 8], accepts("4 or 8 with method weight_only")] = 8
    backend: Annotated[Name, accepts("openvino or onnxruntime")] = "openvino"
    compute_dtype: ComputeDtype = "float32"

    @classmethod
    def implied(cls, values: dict) -> dict:
        """With a symmetric grid at 8 bits."""
        return super().implied({"symmetric": values.get("bits", 8) != 4, **values})

    def gptq(self) -> Gptq:
        """The step that makes the codes."""
        return Gptq(bits=self.bits, **{key: getattr(self, key) for key in Grouped.model_fields})


class Bfloat16(Quantize):
    """A real kernel in half the bits; encoders, rerankers."""

    embeddings: ClassVar[int] = 32
    compute_dtype: ClassVar[str] = "bfloat16"
    method: Literal["bfloat16"] = "bfloat16"
    bits: Annotated[Literal[16], accepts("16 with method bfloat16")] = 16
    unquantized_dtype: UnquantizedDtype = "float16"
    backend: Annotated[Name, accepts("openvino or torch")] = "openvino"
