"""Keys of a `prune` step, one type per method. A type's docstring is the help of its method."""

from typing import Annotated, Literal, Self

from pydantic import model_validator

from kerf.config.base import Flag, Pattern, Shrinkage, Sparsity, StepParameters, Sweeps, accepts
from kerf.core.errors import refuse

UNITS = ("neurons", "heads")  # methods that remove units of every block
STRUCTURES = (*UNITS, "depth")  # methods that leave a smaller model instead of zeros
Saliency = Annotated[Literal["second-order", "activation"], accepts("second-order or activation")]
Allocation = Annotated[
    Literal["uniform", "sensitivity"],
    accepts("uniform, or sensitivity: by what each layer costs; not for rerankers"),
]


class Prune(StepParameters):
    """Keys of all methods."""

    sparsity: Sparsity = 0.5


class Unstructured(Prune):
    """Single weights, anywhere or N of every M."""

    pattern: Pattern = None
    allocation: Allocation = "uniform"

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.allocation == "sensitivity" and (self.pattern or self.scope == "global"):
            accepted = "uniform, or sensitivity with scope layer and no pattern"
            raise refuse("allocation", self.allocation, accepted)
        if self.scope == "global" and self.pattern:
            raise refuse("scope", self.scope, "layer, or global without a pattern")
        return self


class Magnitude(Unstructured):
    """The smallest weights go."""

    method: Literal["magnitude"] = "magnitude"
    scope: Annotated[Literal["layer", "global"], accepts("layer or global")] = "layer"


class Wanda(Unstructured):
    """The smallest by weight and input go (Sun et al. 2023)."""

    method: Literal["wanda"] = "wanda"
    sweeps: Sweeps = 2


class SparseGPT(Unstructured):
    """Column by column with error feedback (Frantar and Alistarh 2023)."""

    method: Literal["sparsegpt"] = "sparsegpt"
    asymmetric_calibration: Flag = True
    shrinkage: Shrinkage = "auto"
    sweeps: Sweeps = 2


class Neurons(Prune):
    """Whole feed-forward neurons, by least squares: smaller matrices."""

    method: Literal["neurons"] = "neurons"
    saliency: Saliency = "second-order"


class Heads(Prune):
    """Whole key and value heads with their query heads, by least squares."""

    method: Literal["heads"] = "heads"
    saliency: Saliency = "second-order"


class Depth(Prune):
    """Whole blocks, those that change their input least."""

    method: Literal["depth"] = "depth"
