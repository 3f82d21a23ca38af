"""Keys of a `prune` step and of a `reconstruct` step."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from kerf.core.errors import refuse
from kerf.config.base import MOST, Parameters, check_read, nm_pattern, of_pattern, whole

UNITS = ("neurons", "heads")  # methods that take part of every block
STRUCTURES = (*UNITS, "depth")  # methods that leave a smaller model, not zeros


class Prune(Parameters):
    """Keys of a `prune` step."""

    method: Annotated[
        Literal["magnitude", "wanda", "sparsegpt", "neurons", "heads", "depth"],
        Field(description="magnitude, wanda, sparsegpt, neurons, heads or depth"),
    ] = "magnitude"
    sparsity: Annotated[float, Field(gt=0, lt=1, description="a share between 0 and 1, both apart")] = 0.5
    pattern: Annotated[str | None, Field(description="N:M, as in 2:4, with N below M; it decides the sparsity")] = None
    allocation: Annotated[
        Literal["uniform", "sensitivity"], Field(description="uniform, or sensitivity: by what each layer costs; not for rerankers")
    ] = "uniform"
    scope: Annotated[Literal["layer", "global"], Field(description="layer or global; global is magnitude's alone")] = "layer"
    saliency: Annotated[
        Literal["second-order", "activation"], Field(description="second-order or activation; neurons and heads only")
    ] = "second-order"
    asymmetric_calibration: Annotated[StrictBool, Field(description="true or false; sparsegpt only")] = True
    sweeps: Annotated[int, whole(0, 20, "; wanda and sparsegpt only")] = 2

    nm_pattern = nm_pattern
    _implied = model_validator(mode="before")(of_pattern)

    @model_validator(mode="after")
    def _agree(self):
        check_read(self, asymmetric_calibration=("sparsegpt",), sweeps=("wanda", "sparsegpt"))
        if self.scope == "global" and (self.method != "magnitude" or self.pattern):
            raise refuse("scope", self.scope, "layer, or global with method magnitude and no pattern")
        if self.allocation == "sensitivity" and (self.pattern or self.scope == "global" or self.method in STRUCTURES):
            raise refuse("allocation", self.allocation, "uniform, or sensitivity with magnitude, wanda or sparsegpt, scope layer, no pattern")
        if self.saliency != "second-order" and self.method not in ("neurons", "heads"):
            raise refuse("saliency", self.saliency, "second-order, or activation with method neurons or heads")
        if self.method in STRUCTURES and self.pattern:
            raise refuse("pattern", self.pattern, f"none with method {self.method}, which leaves whole {self.method} out")
        return self


class Reconstruct(Parameters):
    """Keys of a `reconstruct` step."""

    steps: Annotated[int, whole(1, MOST)] = 400
    joint_steps: Annotated[int, whole(0, MOST, " (0: none)")] = 500
    minutes: Annotated[float, Field(gt=0, le=1440, description="more than 0, at most 1440 minutes")] = 9.0
    splices: Annotated[int, whole(1, 100)] = 8
