"""Keys of a `prune` step, one type for each method, and of a `reconstruct` step."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from kerf.config.base import (
    MOST,
    Flag,
    Parameters,
    Pattern,
    Sparsity,
    Sweeps,
    nm_pattern,
    of_pattern,
    whole,
)
from kerf.core.errors import refuse

UNITS = ("neurons", "heads")  # methods that take part of every block
STRUCTURES = (*UNITS, "depth")  # methods that leave a smaller model, not zeros
Allocation = Annotated[
    Literal["uniform", "sensitivity"],
    Field(description="uniform, or sensitivity: by what each layer costs; not for rerankers"),
]
Saliency = Annotated[
    Literal["second-order", "activation"], Field(description="second-order or activation")
]


class Prune(Parameters):
    """What the steps of all methods have in common."""

    sparsity: Sparsity = 0.5

    nm_pattern = nm_pattern


class Unstructured(Prune):
    """Single weights, anywhere or N of every M."""

    pattern: Pattern = None
    allocation: Allocation = "uniform"

    _share = model_validator(mode="before")(of_pattern)

    @model_validator(mode="after")
    def _shares(self):
        if self.allocation == "sensitivity" and (self.pattern or self.scope == "global"):
            raise refuse(
                "allocation",
                self.allocation,
                "uniform, or sensitivity with scope layer and no pattern",
            )
        return self


class Magnitude(Unstructured):
    """Keys of method magnitude."""

    sweeps: ClassVar[int] = 0
    method: Literal["magnitude"] = "magnitude"
    scope: Annotated[Literal["layer", "global"], Field(description="layer or global")] = "layer"

    @model_validator(mode="after")
    def _scoped(self):
        if self.scope == "global" and self.pattern:
            raise refuse("scope", self.scope, "layer, or global without a pattern")
        return self


class Wanda(Unstructured):
    """Keys of method wanda."""

    scope: ClassVar[str] = "layer"
    method: Literal["wanda"] = "wanda"
    sweeps: Sweeps = 2


class SparseGPT(Unstructured):
    """Keys of method sparsegpt."""

    scope: ClassVar[str] = "layer"
    method: Literal["sparsegpt"] = "sparsegpt"
    asymmetric_calibration: Flag = True
    sweeps: Sweeps = 2


class Structured(Prune):
    """Whole units or blocks: a smaller model, not zeros."""

    pattern: ClassVar[None] = None
    allocation: ClassVar[str] = "uniform"


class Neurons(Structured):
    """Keys of method neurons."""

    method: Literal["neurons"] = "neurons"
    saliency: Saliency = "second-order"


class Heads(Structured):
    """Keys of method heads."""

    method: Literal["heads"] = "heads"
    saliency: Saliency = "second-order"


class Depth(Structured):
    """Keys of method depth."""

    method: Literal["depth"] = "depth"


class Reconstruct(Parameters):
    """Keys of a `reconstruct` step."""

    steps: Annotated[int, whole(1, MOST)] = 400
    joint_steps: Annotated[int, whole(0, MOST, " (0: none)")] = 500
    minutes: Annotated[
        float, Field(gt=0, le=1440, description="more than 0, at most 1440 minutes")
    ] = 9.0
    augmentation_factor: Annotated[int, whole(1, 100)] = 8
