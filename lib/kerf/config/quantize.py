"""Keys of a `quantize` step, and which of them go together."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from kerf.core.errors import refuse
from kerf.config.base import Bits, MOST, Name, Parameters, check_read, nm_pattern, of_pattern, whole

# Methods whose result runs on real kernels, and the libraries that have them: the first is taken where none is named.
KERNEL_METHODS = {
    "static": ("openvino", "onnxruntime", "torch"),
    "dynamic": ("torch", "onnxruntime"),
    "weights": ("openvino", "onnxruntime"),
    "bfloat16": ("openvino", "torch"),
}
BACKENDS = ("openvino", "onnxruntime", "torch")
ELSEWHERE = ("checkpoint", "gptqmodel")  # methods whose linear layers something else quantized


class Quantize(Parameters):
    """Keys of a `quantize` step."""

    method: Annotated[
        Literal["rtn", "gptq", "checkpoint", "gptqmodel", *KERNEL_METHODS],
        Field(description="rtn, gptq, checkpoint, gptqmodel, static, dynamic, weights or bfloat16"),
    ] = "rtn"
    bits: Annotated[Bits | Literal["mixed"], Field(description="a whole number from 2 to 8, 1.6 (ternary) or mixed")] = 8
    granularity: Annotated[
        Literal["tensor", "channel", "group"], Field(description="tensor, channel or group")
    ] = "channel"
    group_size: Annotated[int | None, Field(ge=2, le=MOST, description=f"2 to {MOST}, a divisor of every layer's columns")] = None
    symmetric: Annotated[StrictBool, Field(description="true or false")] = False
    clip: Annotated[Literal["none", "mse", "hessian"], Field(description="none, mse or hessian")] = "none"
    embeddings: Annotated[
        Bits | Literal[32, "same"], Field(description="2 to 8, 32 (left in float) or same (as bits)")
    ] = 8
    scale_dtype: Annotated[Literal["float16", "float32"], Field(description="float16 or float32")] = "float16"
    floats: Annotated[
        Literal["float32", "float16"], Field(description="float32 or float16, of what is not quantized")
    ] = "float32"
    act_order: Annotated[StrictBool, Field(description="true or false; gptq and gptqmodel only")] = True
    asymmetric_calibration: Annotated[StrictBool, Field(description="true or false; gptq only")] = True
    sweeps: Annotated[int, whole(0, 20, "; gptq only")] = 2

    sparsity: Annotated[float | None, Field(gt=0, lt=1, description="a share between 0 and 1; gptq only")] = None
    pattern: Annotated[str | None, Field(description="N:M, as in 2:4, with N below M; gptq only")] = None
    budget_bytes: Annotated[int | None, whole(1, 10**15, ", bytes of the weight file; mixed only")] = None
    floor: Annotated[float | None, Field(gt=0, lt=1, description="a mean cosine between 0 and 1; mixed, static and dynamic only")] = None
    backend: Annotated[Literal[BACKENDS] | None, Field(description="openvino, onnxruntime or torch; real kernels only")] = None
    compute: Annotated[
        Literal["float32", "bfloat16"], Field(description="float32 or bfloat16, of what a real kernel does not compute in bytes")
    ] = "float32"
    checkpoint: Annotated[Name | None, Field(description="a GPTQ checkpoint, directory or hub id; checkpoint only")] = None

    nm_pattern = nm_pattern

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, values):
        values = of_pattern(values)
        if isinstance(values, dict) and values.get("granularity") is None:
            values = {**values, "granularity": "channel" if values.get("group_size") is None else "group"}
        if isinstance(values, dict) and values.get("bits") == "mixed":
            values = {"embeddings": "same", **values}
        if isinstance(values, dict) and str(values.get("method")) in KERNEL_METHODS:  # str: a list has no hash
            values = {"backend": KERNEL_METHODS[values["method"]][0], "symmetric": values.get("bits") != 4, **values}
        if isinstance(values, dict) and values.get("method") == "bfloat16":
            values = {"bits": 16, "compute": "bfloat16", "embeddings": 32, "floats": "float16", **values}
        return values

    @model_validator(mode="after")
    def _agree(self):
        check_read(self, act_order=("gptq", "gptqmodel"), asymmetric_calibration=("gptq",), sweeps=("gptq",))
        if (self.granularity == "group") != (self.group_size is not None):
            raise refuse("granularity", self.granularity, "group together with a group_size, or another without one")
        limits = [each for each in (self.budget_bytes, self.floor if self.method not in ("static", "dynamic") else None) if each is not None]
        if (self.bits == "mixed") != (len(limits) == 1):
            raise refuse("bits", self.bits, "mixed together with either budget_bytes or floor, or a width without them")
        if self.sparsity is not None and (self.method != "gptq" or self.bits == "mixed"):
            raise refuse("sparsity", self.sparsity, "none but with method gptq and one width; a prune step goes with everything")
        if (self.method == "checkpoint") != (self.checkpoint is not None):
            raise refuse("checkpoint", self.checkpoint, "a directory or hub id with method checkpoint, none without it")
        if self.method in ELSEWHERE and self.bits not in (2, 3, 4, 8):
            raise refuse("bits", self.bits, f"2, 3, 4 or 8 with method {self.method}")
        if self.method in (*ELSEWHERE, *KERNEL_METHODS) and self.granularity == "tensor":
            raise refuse("granularity", self.granularity, f"channel or group with method {self.method}")
        return self

    @model_validator(mode="after")
    def _real(self):
        for key in ("bits", "embeddings"):
            if getattr(self, key) == 16 and (self.method, key) != ("bfloat16", "bits"):
                raise refuse(key, 16, type(self).model_fields[key].description)
        if (self.method in KERNEL_METHODS) != (self.backend is not None):
            raise refuse("backend", self.backend, f"a library with method {', '.join(KERNEL_METHODS)}, none with the others")
        if self.method not in KERNEL_METHODS and self.compute != "float32":
            raise refuse("compute", self.compute, f"float32, or bfloat16 with method {', '.join(KERNEL_METHODS)}")
        widths = {"weights": (4, 8), "bfloat16": (16,)}.get(self.method, (8,))
        if self.method in KERNEL_METHODS and self.bits not in widths:
            raise refuse("bits", self.bits, f"{' or '.join(map(str, widths))} with method {self.method}")
        if self.method in KERNEL_METHODS and self.backend not in KERNEL_METHODS[self.method]:
            raise refuse("backend", self.backend, f"{' or '.join(KERNEL_METHODS[self.method])} with method {self.method}")
        if self.method in ("static", "dynamic") and (self.group_size or not self.symmetric):
            key = "group_size" if self.group_size else "symmetric"
            raise refuse(key, getattr(self, key), f"{'none' if self.group_size else 'true'} with method {self.method}, whose weights have one scale a row")
        if self.backend == "onnxruntime" and (self.group_size or 16) % 16:
            raise refuse("group_size", self.group_size, "a multiple of 16 with backend onnxruntime")
        if self.compute == "bfloat16" and self.method != "bfloat16" and self.backend != "openvino":
            raise refuse("compute", self.compute, f"float32, or bfloat16 with backend openvino; {self.backend} computes the rest in float32")
        return self

    def embedding_bits(self) -> float:
        """Bits of the word embeddings, 32 for float."""
        return self.bits if self.embeddings == "same" else self.embeddings
