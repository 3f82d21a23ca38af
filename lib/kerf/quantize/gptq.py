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

from kerf.calibration.hessian import damped, finite, inverse_factor, ordered
from kerf.tensors import numba_kernels
from kerf.tensors.quantized import Quantized, top_code



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
    found = _round_columns(weight.float().index_select(1, order), R, *transposed, order // group_size, top_code(bits), here)
    if found is None:
        return None, damping
    codes[:, order] = found
    result = Quantized(codes, scale, zero_point, bits, group_size, symmetric, kept)
    if sweeps:
        loss = damped(H, damping)
        gradient = (result.dequantize() - weight.float()) @ loss
        for _ in range(sweeps):
            groups = torch.arange(columns) // group_size
            numba_kernels.descend(codes, gradient, loss, *grid, groups, order, top_code(bits), everywhere)
    return result, damping


def _round_columns(W, R, scale, zero_point, group_of, top, kept):
    """Codes (rows, columns) of W, which is scratch; None where an error overflows. Grid: (groups, rows)."""
    codes = torch.empty(W.shape, dtype=torch.uint8)
    for start in range(0, W.shape[1], numba_kernels.BLOCK):
        stop = min(start + numba_kernels.BLOCK, W.shape[1])
        errors = torch.empty(len(W), stop - start)
        numba_kernels.round_block(W, R, scale, zero_point, group_of, top, kept, codes, errors, start, stop)
        if not finite(errors):
            return None
        W[:, stop:].addmm_(errors, R[start:stop, stop:], alpha=-1)
    return codes
