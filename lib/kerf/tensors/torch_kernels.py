"""The kernels of `kerf.tensors.numba_kernels` in plain torch, for tensors on any device: same names and arguments.

Rows are independent, so each step over columns is one operation on all rows. Sums run in another order than numba's, so a
weight halfway between two codes may get the other one.
"""

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Span = tuple[int, int]


def keep_better(groups: Tensor, weights: Tensor, top: int, trial: Tensors, best: Tensors) -> None:
    """Put each group's grid of `trial` into `best` where it has the smaller weighted squared error."""
    _, scale, zero_point = trial
    exact = groups / scale[..., None] + zero_point[..., None]
    errors = (exact.round().clamp(0, top) - exact).square() * weights
    error = errors.sum(-1) * scale.square()
    better = error < best[0]
    for current, value in zip(best, (error, *trial), strict=True):
        current.copy_(torch.where(better, value, current))


def round_block(
    W: Tensor,
    R: Tensor,
    grid: Tensors,
    group_of: Tensor,
    top: int,
    mask: Tensor,
    out: Tensors,
    span: Span,
) -> None:
    """Columns `span` (start, stop) of GPTQ; out: codes and errors."""
    (codes, errors), (start, stop) = out, span
    block, columns = W[:, start:stop].clone(), group_of[start:stop]
    scale, zero_point = (part[columns] for part in grid)
    for i in range(stop - start):
        code = (block[:, i] / scale[i] + zero_point[i]).round().clamp(0, top)
        value = (code - zero_point[i]) * scale[i] * mask[:, start + i]
        errors[:, i] = (block[:, i] - value) / R[start + i, start + i]
        block[:, i + 1 :] -= errors[:, i, None] * R[start + i, start + i + 1 : stop]
        codes[:, start + i] = code.to(codes.dtype)


def prune_block(
    W: Tensor, R: Tensor, mask: Tensor, zeros: int, of: int, errors: Tensor, span: Span
) -> None:
    """Columns `span` (start, stop) of SparseGPT."""
    start, stop = span
    block, pivots = W[:, start:stop].clone(), R.diagonal()[start:stop]
    for i in range(stop - start):
        if of and i % of == 0:
            loss = (block[:, i : i + of] / pivots[i : i + of]).square()
            smallest = loss.argsort(stable=True, dim=1)[:, :zeros]
            chosen = torch.ones_like(loss, dtype=torch.bool).scatter_(1, smallest, False)
            mask[:, start + i : start + i + of] = chosen
        stays = mask[:, start + i]
        errors[:, i] = torch.where(stays, 0, block[:, i] / pivots[i])
        block[:, i] = torch.where(stays, block[:, i], 0)
        block[:, i + 1 :] -= errors[:, i, None] * R[start + i, start + i + 1 : stop]
    W[:, start:stop] = block


def descend_kept(W: Tensor, gradient: Tensor, H: Tensor, mask: Tensor) -> None:
    """One sweep of coordinate descent over the weights that the mask keeps."""
    for i in range(len(H)):
        step = torch.where(mask[:, i], -gradient[:, i] / H[i, i], 0)
        W[:, i] += step
        gradient.addr_(step, H[i])


def descend(
    codes: Tensor,
    gradient: Tensor,
    H: Tensor,
    grid: Tensors,
    group_of: Tensor,
    order: Tensor,
    top: int,
    mask: Tensor,
) -> None:
    """One sweep of coordinate descent over codes, in the given order of columns."""
    scale, zero_point = grid
    for i in order.tolist():
        s, z = scale[:, group_of[i]], zero_point[:, group_of[i]]
        value = (codes[:, i].float() - z) * s
        code = ((value - gradient[:, i] / H[i, i]) / s + z).round().clamp(0, top)
        code = torch.where(mask[:, i], code, codes[:, i].float())
        codes[:, i] = code.to(codes.dtype)
        gradient.addr_((code - z) * s - value, H[i])
