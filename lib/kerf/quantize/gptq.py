"""GPTQ: round column by column, and let the columns not yet rounded make up for the error.

Frantar et al. 2022 (arXiv:2210.17323). For weight W (rows, columns) and second moments H = X^T X of the
layer's input, column i is rounded to q_i and every later column j changes by

    W[:, j] -= (W[:, i] - q_i) / Hinv[i, i] * Hinv[i, j],

where Hinv is the upper Cholesky factor of the inverse of H (section 3.3, step 3). Columns go in order of
falling H[i, i] (act-order); grids are found before, from the weights as they were (static groups), so
that the order costs nothing at run time. Rows do not depend on one another: layers that share an input
are stacked and share one factor. Dead columns (no activation) are rounded as they are.
"""

import torch

from kerf.quantize.grid import Quantized

DAMPING = 0.01  # share of the mean of the diagonal that is added to it
BLOCK = 128  # columns whose updates to all later columns are applied at once


def inverse_factor(H: torch.Tensor, damping: float = DAMPING) -> tuple[torch.Tensor | None, float]:
    """Upper Cholesky factor of inverse(H + damping * mean(diag(H)) * I), and the damping it took.

    Damping grows tenfold while a factorization fails; past 1.0 the answer is (None, damping) and the
    caller falls back to rounding to nearest.
    """
    diagonal = H.diagonal()
    dead = diagonal == 0
    mean = diagonal.mean()
    if not H.isfinite().all() or mean <= 0:
        return None, damping
    while damping <= 1.0:
        damped = H.clone()
        damped.diagonal().add_(damping * mean)
        damped.diagonal()[dead] = mean
        L, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            Hinv = torch.cholesky_inverse(L)
            Hinv, failed = torch.linalg.cholesky_ex(Hinv, upper=True)
            if not failed and Hinv.isfinite().all():
                return Hinv, damping
        damping = max(10 * damping, DAMPING)
    return None, damping


def gptq(
    weight: torch.Tensor,
    H: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    act_order: bool = True,
    symmetric: bool = False,
    damping: float = DAMPING,
) -> tuple[Quantized | None, float]:
    """Quantize weight (rows, columns) on the grid (scale, zero_point), each (rows or 1, groups).

    H: (columns, columns) second moments of the input, any multiple of X^T X. Returns the result (None
    when H cannot be factorized, see `inverse_factor`) and the damping that was used.
    """
    columns = weight.shape[1]
    group_size = columns // scale.shape[1]
    order = torch.argsort(H.diagonal(), descending=True, stable=True) if act_order else torch.arange(columns)
    Hinv, damping = inverse_factor(H[order][:, order], damping)
    if Hinv is None:
        return None, damping
    groups = (order // group_size).tolist()
    codes = _round_columns(weight.float().T[order].contiguous(), Hinv, scale, zero_point, groups, bits)
    restored = torch.empty_like(codes)
    restored[order] = codes
    return Quantized(restored.T.contiguous(), scale, zero_point, bits, group_size, symmetric), damping


def _round_columns(W, Hinv, scale, zero_point, groups, bits):
    """Codes (columns, rows) of W (columns, rows): transposed, so that a column lies in one piece.

    W is changed in place: it is scratch.
    """
    scales = [column.contiguous() for column in scale.float().T.expand(-1, W.shape[1])]
    zeros = [column.contiguous() for column in zero_point.float().T.expand(-1, W.shape[1])]
    codes = torch.empty(W.shape, dtype=torch.uint8)
    errors = torch.empty(BLOCK, W.shape[1])
    q = torch.empty(W.shape[1])
    top = 2**bits - 1
    pivots = Hinv.diagonal().tolist()
    for start in range(0, len(W), BLOCK):
        stop = min(start + BLOCK, len(W))
        for i in range(start, stop):
            s, z = scales[groups[i]], zeros[groups[i]]
            torch.div(W[i], s, out=q).add_(z).round_().clamp_(0, top)
            codes[i] = q
            error = errors[i - start]
            torch.sub(W[i], q.sub_(z).mul_(s), out=error).div_(pivots[i])
            W[i + 1 : stop].addr_(Hinv[i, i + 1 : stop], error, alpha=-1)
        W[stop:].addmm_(Hinv[start:stop, stop:].T, errors[: stop - start], alpha=-1)
    return codes
