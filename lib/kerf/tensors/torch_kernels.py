"""The kernels of `kerf.tensors.numba_kernels` in plain torch, for tensors on any device: same arguments, same shapes.

Rows are independent, so each step over columns is one operation on all rows. Sums run in another order than numba's, so a
weight halfway between two codes may get the other one.
"""

import torch


def keep_better(
    groups: torch.Tensor,
    importance: torch.Tensor,
    top: int,
    trial: tuple[torch.Tensor, ...],
    best: tuple[torch.Tensor, ...],
) -> None:
    """Put each group's grid of `trial` into `best` where it has the smaller weighted squared error."""
    factor, scale, zero_point = trial
    exact = groups / scale[..., None] + zero_point[..., None]
    errors = (exact.round().clamp(0, top) - exact).square()
    error = (errors * importance.view(groups.shape[1:])).sum(-1) * scale.square()
    better = error < best[0]
    for mask, value in zip(best, (error, factor, scale, zero_point), strict=True):
        mask.copy_(torch.where(better, value, mask))


def round_block(
    W: torch.Tensor,
    R: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    group_of: torch.Tensor,
    top: int,
    mask: torch.Tensor,
    codes: torch.Tensor,
    errors: torch.Tensor,
    start: int,
    stop: int,
) -> None:
    """Columns start:stop of GPTQ: codes and errors (rows, stop - start) from W (rows, columns)."""
    block = W[:, start:stop].clone()
    scales, zero_points = scale[group_of[start:stop]], zero_point[group_of[start:stop]]
    for i in range(stop - start):
        s, z = scales[i], zero_points[i]
        code = (block[:, i] / s + z).round().clamp(0, top)
        value = (code - z) * s * mask[:, start + i]
        error = (block[:, i] - value) / R[start + i, start + i]
        block[:, i + 1 :] -= error[:, None] * R[start + i, start + i + 1 : stop]
        codes[:, start + i] = code.to(codes.dtype)
        errors[:, i] = error


def prune_block(
    W: torch.Tensor,
    R: torch.Tensor,
    mask: torch.Tensor,
    zeros: int,
    of: int,
    errors: torch.Tensor,
    start: int,
    stop: int,
) -> None:
    """Columns start:stop of SparseGPT: W (rows, columns) of what is mask, and errors (rows, stop - start)."""
    block, pivots = W[:, start:stop].clone(), R.diagonal()[start:stop]
    for i in range(stop - start):
        if of and i % of == 0:
            loss = (block[:, i : i + of] / pivots[i : i + of]).square()
            smallest = loss.argsort(stable=True, dim=1)[:, :zeros]
            mask = torch.ones_like(loss, dtype=torch.bool).scatter_(1, smallest, False)
            mask[:, start + i : start + i + of] = mask
        error = torch.where(mask[:, start + i], 0, block[:, i] / pivots[i])
        block[:, i] = torch.where(mask[:, start + i], block[:, i], 0)
        block[:, i + 1 :] -= error[:, None] * R[start + i, start + i + 1 : stop]
        errors[:, i] = error
    W[:, start:stop] = block


def descend_kept(
    W: torch.Tensor, gradient: torch.Tensor, H: torch.Tensor, mask: torch.Tensor
) -> None:
    """One sweep of coordinate descent over the weights that are mask; W and gradient change in place."""
    for i in range(len(H)):
        step = torch.where(mask[:, i], -gradient[:, i] / H[i, i], 0)
        W[:, i] += step
        gradient.addr_(step, H[i])


def descend(
    codes: torch.Tensor,
    gradient: torch.Tensor,
    H: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    group_of: torch.Tensor,
    order: torch.Tensor,
    top: int,
    mask: torch.Tensor,
) -> None:
    """One sweep of coordinate descent over codes in the given order of columns; codes and gradient change in place."""
    for i in order.tolist():
        s, z = scale[:, group_of[i]], zero_point[:, group_of[i]]
        value = (codes[:, i].float() - z) * s
        code = ((value - gradient[:, i] / H[i, i]) / s + z).round().clamp(0, top)
        code = torch.where(mask[:, i], code, codes[:, i].float())
        codes[:, i] = code.to(codes.dtype)
        gradient.addr_((code - z) * s - value, H[i])
