"""GPTQ: round column by column, and let the columns not yet rounded make up for the error.

Frantar et al. 2022 (arXiv:2210.17323). For weight W (rows, columns) and second moments H = X^T X of the
layer's input, column i is rounded to q_i and every later column j changes by

    W[:, j] -= (W[:, i] - q_i) / Hinv[i, i] * Hinv[i, j],

where Hinv is the upper Cholesky factor of the inverse of H (section 3.3, step 3). Columns go in order of
falling H[i, i] (act-order); grids are found before, from the weights as they were (static groups), so
that the order costs nothing at run time. Dead columns (no activation) are rounded as they are.

Two things are added. `corrected` moves the target, so that the layer also undoes the error that earlier
layers already made (asymmetric calibration). Sweeps of coordinate descent then visit every column
again, now that the later ones are rounded too (QuantEase, arXiv:2309.01885).
"""

import torch

from kerf.calibration.hessian import DAMPING, act_order, damped, finite, inverse_factor, ordered
from kerf.calibration.layer import Layer
from kerf.config.quantize import Gptq
from kerf.quantize import rounding
from kerf.tensors import masks, numba_kernels
from kerf.tensors.quantized import Quantized, find_grid, top_code

Factor = tuple[
    torch.Tensor, tuple[torch.Tensor | None, float]
]  # the order of the columns, and `inverse_factor` in it


def factor(H: torch.Tensor, step: Gptq) -> Factor:
    """What layers of one input share: the order of the columns, and the inverse factor in that order with its damping."""
    order = act_order(H) if step.act_order else torch.arange(len(H))
    return order, inverse_factor(ordered(H, order))


def layer(given: Layer) -> tuple[Quantized, str]:
    """The layer by GPTQ, or rounded to nearest where H could not be factorized; and a note."""
    step, mask = given.step, given.mask
    order, (R, damping) = given.shared
    if step.sparsity is not None and R is not None:
        mask = least_costly(given.target_weight, order, R, step)
    shown = (
        given.target_weight if mask is None else given.target_weight * mask
    )  # what is 0 for good does not ask for a place on the grid
    grid = rounding.named(
        given.name,
        find_grid,
        shown,
        **rounding.grid_options(step, len(given.H), given.H.diagonal()),
    )
    result, damping = gptq(
        given.target_weight,
        given.H,
        *grid,
        step.bits,
        order,
        step.symmetric,
        (R, damping),
        step.sweeps,
        mask,
    )
    if result is None:
        return rounding.nearest(given)[
            0
        ], "second moments could not be factorized: rounded to nearest"
    return result, f"damping raised to {damping:g}" if damping > DAMPING else ""


def least_costly(
    weight: torch.Tensor, order: torch.Tensor, R: torch.Tensor, step: Gptq
) -> torch.Tensor:
    """bool (rows, columns): False where a weight costs least to remove, w^2 / inverse(H)[i, i] (Hassibi and Stork 1993).

    R: the factor of inverse(H) = R^T R with columns in `order`. Which weights go is settled before the pass over
    the columns, so that act-order and N:M patterns of neighbours do not get in each other's way.
    """
    diagonal = torch.empty(len(R))
    diagonal[order] = R.square().sum(0)
    return masks.of_layer(weight.float().square() / diagonal, step.sparsity, step.nm_pattern())


def gptq(
    weight: torch.Tensor,
    H: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: float,
    order: torch.Tensor | None = None,
    symmetric: bool = False,
    factor: tuple[torch.Tensor | None, float] | None = None,
    sweeps: int = 0,
    kept: torch.Tensor | None = None,
) -> tuple[Quantized | None, float]:
    """Quantize weight (rows, columns) on the grid (scale, zero_point), each (rows or 1, groups).

    H: (columns, columns) second moments of the input, any multiple of X^T X. order: of the columns,
    default as they stand. factor: `inverse_factor` of H in that order, for layers that share it. kept: bool
    (rows, columns) of a weight that was pruned before; what it leaves out stays 0. Returns
    the result (None when H cannot be factorized or numbers overflow) and the damping that was used.
    """
    rows, columns = weight.shape
    group_size = columns // scale.shape[1]
    order = torch.arange(columns) if order is None else order
    R, damping = factor or inverse_factor(ordered(H, order))
    if R is None:
        return None, damping
    grid = [part.float().expand(rows, -1).contiguous() for part in (scale, zero_point)]
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    transposed = [part.T.contiguous() for part in grid]
    everywhere = torch.ones(rows, columns, dtype=torch.bool) if kept is None else kept
    here = everywhere if kept is None else kept[:, order].contiguous()
    found = _round_columns(
        weight.float().index_select(1, order),
        R,
        *transposed,
        order // group_size,
        top_code(bits),
        here,
    )
    if found is None:
        return None, damping
    codes[:, order] = found
    result = Quantized(codes, scale, zero_point, bits, group_size, symmetric, kept)
    if sweeps:
        loss = damped(H, damping)
        gradient = (result.dequantize() - weight.float()) @ loss
        for _ in range(sweeps):
            groups = torch.arange(columns) // group_size
            numba_kernels.descend(
                codes, gradient, loss, *grid, groups, order, top_code(bits), everywhere
            )
    return result, damping


def _round_columns(W, R, scale, zero_point, group_of, top, kept):
    """Codes (rows, columns) of W, which is scratch; None where an error overflows. Grid: (groups, rows)."""
    codes = torch.empty(W.shape, dtype=torch.uint8)
    for start in range(0, W.shape[1], numba_kernels.BLOCK):
        stop = min(start + numba_kernels.BLOCK, W.shape[1])
        errors = torch.empty(len(W), stop - start)
        numba_kernels.round_block(
            W, R, scale, zero_point, group_of, top, kept, codes, errors, start, stop
        )
        if not finite(errors):
            return None
        W[:, stop:].addmm_(errors, R[start:stop, stop:], alpha=-1)
    return codes
