"""GPTQ: round column by column, and let the columns that are not rounded yet compensate for the error.

Frantar et al. 2022 (arXiv:2210.17323). For weight W (rows, columns) and second moments H = X^T X of the layer's input, column
i is rounded to q_i and every later column j changes by

    W[:, j] -= (W[:, i] - q_i) / Hinv[i, i] * Hinv[i, j],

where Hinv is the upper Cholesky factor of the inverse of H (section 3.3, step 3). Columns go in order of falling H[i, i]
(act-order); grids are chosen before, from the original weights (static groups), so that the order costs nothing at run time.
Dead columns (no activation) are rounded as they are.

Two things are added. `corrected` moves the target, so that the layer also undoes the error that earlier layers made
(asymmetric calibration). Sweeps of coordinate descent then visit every column again, with the later ones rounded too
(QuantEase, arXiv:2309.01885).
"""

from typing import Any

import torch
from torch import Tensor

from kerf.calibration.hessian import DAMPING, act_order, damped, finite, inverse_factor, ordered
from kerf.calibration.layer import Layer
from kerf.config.quantize import Gptq
from kerf.quantize import rounding
from kerf.tensors import kernels, masks, numba_kernels
from kerf.tensors.quantized import Quantized, find_grid, top_code

Factor = tuple[
    Tensor | None, float
]  # `inverse_factor` of H in an order of the columns, and its damping


def factor(H: Tensor, step: Gptq) -> tuple[Tensor, Factor]:
    """What layers of one input share: the order of the columns, and the inverse factor of H in that order."""
    order = act_order(H) if step.act_order else torch.arange(len(H), device=H.device)
    return order, inverse_factor(ordered(H, order))


def quantize_layer(layer: Layer) -> tuple[Quantized, str]:
    """The layer by GPTQ, or rounded to nearest where H could not be factorized; and a note."""
    step, mask, target, H = layer.step, layer.mask, layer.target_weight, layer.H
    assert H is not None  # the registry gives this method its second moments
    order, (R, damping) = layer.shared
    if step.sparsity is not None and R is not None:
        mask = least_costly(target, order, R, step)
    visible = target if mask is None else target * mask  # pruned weights must not widen the grid
    options = rounding.grid_options(step, len(H), H.diagonal())
    scale, zero_point = rounding.named(layer.name, find_grid, visible, **options)
    result, damping = gptq(
        target,
        H,
        scale,
        zero_point,
        step.bits,
        order,
        step.symmetric,
        factor=(R, damping),
        sweeps=step.sweeps,
        mask=mask,
    )
    if result is None:
        note = "second moments could not be factorized: rounded to nearest"
        return rounding.nearest(layer)[0], note
    return result, f"damping raised to {damping:g}" if damping > DAMPING else ""


def least_costly(weight: Tensor, order: Tensor, R: Tensor, step: Any) -> Tensor:
    """bool (rows, columns): False where a weight costs least to remove, w^2 / inverse(H)[i, i] (Hassibi and Stork 1993).

    R: the factor of inverse(H) = R^T R with columns in `order`. The mask is chosen before the pass over the columns, so that
    act-order and N:M patterns of neighbours do not conflict.
    """
    diagonal = R.new_empty(len(R))
    diagonal[order] = R.square().sum(0)
    return masks.of_layer(weight.float().square() / diagonal, step.sparsity, step.nm_pattern())


def gptq(
    weight: Tensor,
    H: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: float,
    order: Tensor | None = None,
    symmetric: bool = False,
    factor: Factor | None = None,
    sweeps: int = 0,
    mask: Tensor | None = None,
) -> tuple[Quantized | None, float]:
    """Quantize weight (rows, columns) on the grid (scale, zero_point), each (rows or 1, groups).

    H: (columns, columns) second moments of the input, any multiple of X^T X. order: of the columns, by default as they stand.
    factor: `inverse_factor` of H in that order, for layers that share it. mask: bool (rows, columns) of a pruned weight; entries
    where it is False stay 0. Returns the result (None when H cannot be factorized or numbers overflow) and the damping used.
    """
    rows, columns = weight.shape
    device, top = weight.device, top_code(bits)
    groups = torch.arange(columns, device=device) // (columns // scale.shape[1])
    order = torch.arange(columns, device=device) if order is None else order
    R, damping = factor or inverse_factor(ordered(H, order))
    if R is None:
        return None, damping
    grid = tuple(part.float().expand(rows, -1).contiguous() for part in (scale, zero_point))
    full = torch.ones(rows, columns, dtype=torch.bool, device=device) if mask is None else mask
    W, ordered_mask = weight.float().index_select(1, order), full[:, order].contiguous()
    by_group = tuple(part.T.contiguous() for part in grid)
    rounded = _round_columns(W, R, by_group, groups[order], top, ordered_mask)
    if rounded is None:
        return None, damping
    codes = torch.empty_like(rounded)
    codes[:, order] = rounded
    group_size = columns // scale.shape[1]
    result = Quantized(codes, scale, zero_point, bits, group_size, symmetric, mask)
    if sweeps:
        loss = damped(H, damping)
        gradient = (result.dequantize() - weight.float()) @ loss
        for _ in range(sweeps):
            kernels.of(codes).descend(codes, gradient, loss, grid, groups, order, top, full)
    return result, damping


def _round_columns(
    W: Tensor, R: Tensor, grid: tuple[Tensor, ...], group_of: Tensor, top: int, mask: Tensor
) -> Tensor | None:
    """Codes (rows, columns) of W, which is overwritten; None where an error overflows. grid: scale, zero_point (groups, rows)."""
    codes = torch.empty(W.shape, dtype=torch.uint8, device=W.device)
    for start in range(0, W.shape[1], numba_kernels.BLOCK):
        stop = min(start + numba_kernels.BLOCK, W.shape[1])
        errors = W.new_empty(len(W), stop - start)
        out, span = (codes, errors), (start, stop)
        kernels.of(W).round_block(W, R, grid, group_of, top, mask, out, span)
        if not finite(errors):
            return None
        W[:, stop:].addmm_(errors, R[start:stop, stop:], alpha=-1)
    return codes
