"""Wanda: prune the weights of least |w| times the norm of their input, in each row (Sun et al. 2023, arXiv:2306.11695).

Sweeps of coordinate descent then adapt the remaining weights; without them it is the method as published.
"""

from torch import Tensor

from kerf.calibration.hessian import damped
from kerf.calibration.layer import Layer
from kerf.tensors import kernels, masks


def prune_layer(layer: Layer) -> tuple[Tensor, str]:
    """The pruned weight, and no note."""
    step, weight, H = layer.step, layer.weight.float(), layer.H
    assert H is not None  # the registry gives this method its second moments
    scores = masks.wanda(weight, H.diagonal())
    if step.pattern:
        mask = masks.of_layer(scores, step.sparsity, step.nm_pattern())
    else:
        mask = masks.lowest(scores, step.sparsity)
    pruned = weight.masked_fill(~mask, 0)
    if step.method == "wanda" and step.sweeps:
        coordinate_descent(pruned, weight, H, mask, step.sweeps)
    return pruned, ""


def coordinate_descent(W: Tensor, target: Tensor, H: Tensor, mask: Tensor, sweeps: int) -> None:
    """Coordinate descent on |(W - target) X|^2 over the weights that are mask, in place."""
    loss = damped(H, 0.01)
    gradient = (W - target) @ loss
    for _ in range(sweeps):
        kernels.of(W).descend_kept(W, gradient, loss, mask)
