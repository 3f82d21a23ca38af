"""A linear layer as a method sees it."""

from dataclasses import dataclass

import torch

from kerf.config.base import Parameters


@dataclass(frozen=True)
class Layer:
    """One linear layer, by itself.

    weight: (rows, columns), as it is. step: the parameters of the method, for this layer. H: (columns, columns) second
    moments of its input, any multiple of X^T X; None where no calibration text is looked at, or none reached it. target:
    (rows, columns), the weight whose output on this input is wanted: another than `weight` where the layers before it
    changed the input (`kerf.calibration.hessian.corrected`). mask: bool (rows, columns), False where a weight was pruned
    and stays 0. shared: what the method's `shared` made of H for all layers that share the input.
    """

    name: str
    weight: torch.Tensor
    step: Parameters
    H: torch.Tensor | None = None
    target: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    shared: object = None

    @property
    def target_weight(self) -> torch.Tensor:
        """The target, or the weight itself."""
        return self.weight if self.target is None else self.target
