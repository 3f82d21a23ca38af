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

from kerf.tensors import numba_kernels
from kerf.tensors.quantized import Quantized, top_code

DAMPING = 0.1  # share of the mean of the diagonal that is added to it
RIDGE = 18.0  # the same for `corrected`, times columns over tokens: how much the text has to insist before a weight moves
BLOCK = 128  # columns whose updates to all later columns are applied at once


def finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite, in one pass that allocates nothing."""
    low, high = tensor.aminmax()  # NaN goes through
    return bool(low.isfinite() and high.isfinite())


def damped(H: torch.Tensor, damping: float) -> torch.Tensor:
    """H + damping * mean(diag(H)) * I, a copy; dead columns get the mean."""
    mean, dead = H.diagonal().mean(), H.diagonal() == 0
    result = H.clone()
    result.diagonal().add_(damping * mean)
    result.diagonal()[dead] = mean
    return result


def inverse_factor(H: torch.Tensor, damping: float = DAMPING) -> tuple[torch.Tensor | None, float]:
    """Upper Cholesky factor of the inverse of damped H, and the damping it took.

    Damping grows tenfold while a factorization fails; past 1.0 the answer is (None, damping) and the
    caller falls back to rounding to nearest.
    """
    if not finite(H) or H.diagonal().mean() <= 0:
        return None, damping
    while damping <= 1.0:
        # With rows and columns in reverse, the lower factor L of H gives H = U U^T for the upper U =
        # flip(L), so inverse(H) = R^T R with R = inverse(U): one factorization instead of two.
        L, failed = torch.linalg.cholesky_ex(damped(H, damping).flip(0, 1))
        if not failed:
            R = torch.linalg.solve_triangular(L.flip(0, 1), torch.eye(len(H)), upper=True)
            if finite(R):
                return R.contiguous(), damping
        damping = max(10 * damping, DAMPING)
    return None, damping


def act_order(H: torch.Tensor) -> torch.Tensor:
    """Columns by falling second moment."""
    return torch.argsort(H.diagonal(), descending=True, stable=True)


def ordered(H: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """H with its rows and columns in another order; `index_select` is three times as fast as brackets."""
    return H.index_select(0, order).index_select(1, order)


def corrected(weight: torch.Tensor, H: torch.Tensor, drift: torch.Tensor, tokens: int) -> torch.Tensor:
    """The weight whose output on the compressed model's inputs X is closest to W's on the float model's, F.

    Least squares: W + W D (H + ridge)^-1 with H = X^T X and drift D = (F - X)^T X, both (columns,
    columns), over so many tokens; what few tokens say of many columns is mostly noise, so the ridge grows
    with columns / tokens. GPTAQ (arXiv:2504.02692) has the same objective, column by column. The weight
    itself where H cannot be factorized.
    """
    L, failed = torch.linalg.cholesky_ex(damped(H, RIDGE * len(H) / tokens))
    if failed or not finite(drift):
        return weight.float()
    moved = weight.float() + torch.cholesky_solve((weight.float() @ drift).T, L).T
    return moved.contiguous() if finite(moved) else weight.float()


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
    for start in range(0, W.shape[1], BLOCK):
        stop = min(start + BLOCK, W.shape[1])
        errors = torch.empty(len(W), stop - start)
        numba_kernels.round_block(W, R, scale, zero_point, group_of, top, kept, codes, errors, start, stop)
        if not finite(errors):
            return None
        W[:, stop:].addmm_(errors, R[start:stop, stop:], alpha=-1)
    return codes
