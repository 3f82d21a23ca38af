"""Wanda: in each row the weights of least |w| times the norm of their input go (Sun et al. 2023, arXiv:2306.11695).

Sweeps of coordinate descent then adapt what is kept; without them it is the method as published.
"""

import torch

from kerf.calibration.hessian import damped
from kerf.calibration.layer import Layer
from kerf.tensors import masks, numba_kernels


def layer(given: Layer) -> tuple[torch.Tensor, str]:
    """The pruned weight, and no note."""
    step, weight = given.step, given.weight.float()
    scores = masks.wanda(weight, given.H.diagonal())
    kept = (
        masks.of_layer(scores, step.sparsity, step.nm_pattern())
        if step.pattern
        else masks.lowest(scores, step.sparsity)
    )
    found = weight.masked_fill(~kept, 0)
    if step.method == "wanda" and step.sweeps:
        coordinate_descent(found, weight, given.H, kept, step.sweeps)
    return found, ""


def coordinate_descent(
    W: torch.Tensor, target: torch.Tensor, H: torch.Tensor, kept: torch.Tensor, sweeps: int
) -> None:
    """Coordinate descent on |(W - target) X|^2 over the weights that are kept, in place."""
    loss = damped(H, 0.01)
    gradient = (W - target) @ loss
    for _ in range(sweeps):
        numba_kernels.descend_kept(W, gradient, loss, kept)
