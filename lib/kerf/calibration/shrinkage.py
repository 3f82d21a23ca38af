"""Shrinkage of second moments: how much of what lies off the diagonal of H = X^T X holds on text that was not seen.

H_s = (1 - s) H + s diag(H), the form of Ledoit and Wolf (2004), with s found by what a layer loses. A method that rounds or
removes column by column leaves the error E A, with E uncorrelated from column to column and A = diag(R)^-1 R the rows of the
factor inverse(H_s) = R^T R, scaled to a diagonal of ones. Where the inputs have the second moments S, the output's error is

    loss(s) = trace(A S A^T) = sum_i (R S R^T)_ii / R_ii^2.

Each source of the calibration text (of a single source each half) is S in turn, and H is of the others; s is where the mean of
log loss is least. With k parts in H instead of k - 1 the sampling error is smaller: by Ledoit and Wolf's formula s / (1 - s) falls
as 1 / k. It does not know about families that differ more than those of the sample do.
"""

import torch
from torch import Tensor

from kerf.calibration.hessian import DAMPING, act_order, damped, finite, ordered

SHARES = (0.0, 0.1, 0.2, 0.4, 0.7, 0.9)  # tried in turn until the loss rises
SKETCH = 64  # random directions, with the second moments of the part that is held back
FLOOR = 0.01  # damping that makes the moments of few tokens positive definite


def shrunk(H: Tensor, share: float) -> Tensor:
    """H (columns, columns) with what lies off its diagonal times 1 - share, in place."""
    diagonal = H.diagonal().clone()
    H.mul_(1 - share).diagonal().copy_(diagonal)
    return H


def found_share(parts: list[Tensor]) -> float:
    """The share s for H = sum(parts), each (columns, columns) of one source; 0 where there are fewer than two parts."""
    total = sum(parts[1:], parts[0].clone()) if parts else torch.zeros(0)
    if len(parts) < 2 or not finite(total):
        return 0.0
    order = act_order(total)
    total, parts = ordered(total, order), [ordered(part, order) for part in parts]
    drawn = torch.Generator().manual_seed(0)
    held = [_directions(part, drawn) for part in parts]
    best, least = 0.0, float("inf")
    for share in SHARES:
        losses = [_log_loss(total - S, X, share) for S, X in zip(parts, held, strict=True)]
        loss = sum(losses) / len(losses)
        if not loss < least:
            break
        best, least = share, loss
    odds = best / (1 - best) * (len(parts) - 1) / len(parts)
    return odds / (1 + odds)


def _directions(S: Tensor, drawn: torch.Generator) -> Tensor:
    """Random vectors (columns, SKETCH) with mean outer product S."""
    L, _ = torch.linalg.cholesky_ex(damped(S, FLOOR))
    return L @ torch.randn(len(S), SKETCH, generator=drawn).to(S.device)


def _log_loss(H: Tensor, X: Tensor, share: float) -> float:
    """log of loss(share) for H, on vectors X (columns, vectors); infinite where H cannot be factorized."""
    L, failed = torch.linalg.cholesky_ex(shrunk(damped(H, DAMPING), share).flip(0, 1))
    if failed:
        return float("inf")
    U = L.flip(0, 1)  # H = U U^T, so R = inverse(U)
    errors = torch.linalg.solve_triangular(U, X, upper=True) * U.diagonal()[:, None]
    return float(errors.square().sum().log())
