"""The inner loops for CPU tensors, compiled by numba: torch would pass over memory once for every operation.

Rows of a weight are independent of one another, so each loop runs over rows in parallel and gives the same result on any
number of threads. The first call of each compiles it (seconds) and keeps the code on disk.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit, prange, set_num_threads

BLOCK = 128  # columns whose updates to all later columns are applied at once
REASSOCIATE = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they vectorize

compiled: Any = partial(njit, parallel=True, cache=True)


def _numpy(*tensors: torch.Tensor) -> list[Any]:
    """The tensors' memory as arrays; numba gets as many threads as torch has."""
    set_num_threads(torch.get_num_threads())
    return [tensor.numpy() for tensor in tensors]


def keep_better(
    groups: torch.Tensor,
    importance: torch.Tensor,
    top: int,
    trial: tuple[torch.Tensor, ...],
    best: tuple[torch.Tensor, ...],
) -> None:
    """Put each group's grid of `trial` into `best` where it has the smaller weighted squared error.

    groups: (rows, groups, size); importance: (groups * size,); trial: (factor, scale, zero_point), each
    (rows, groups), all float32; best: (error, factor, scale, zero_point), changed in place.
    """
    weights = importance.view(groups.shape[1:])
    _keep_better(*_numpy(groups, weights, *trial, *best), np.float32(top))


@compiled(fastmath=REASSOCIATE)
def _keep_better(
    groups,
    importance,
    factor,
    scale,
    zero_point,
    best_error,
    best_factor,
    best_scale,
    best_zero,
    top,
):
    for r in prange(len(groups)):
        for g in range(groups.shape[1]):
            s, z, error = scale[r, g], zero_point[r, g], np.float32(0)
            inverse = np.float32(1) / s
            for i in range(groups.shape[2]):
                place = groups[r, g, i] * inverse + z
                code = min(max(np.rint(place), np.float32(0)), top)
                error += (code - place) * (code - place) * importance[g, i]
            error *= s * s
            if error < best_error[r, g]:
                best_error[r, g], best_factor[r, g] = error, factor[r, g]
                best_scale[r, g], best_zero[r, g] = s, z


TILE = 16  # rows that go through a block together: as many as fit a vector register


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
    """Columns start:stop of GPTQ: codes and errors (rows, stop - start) from W (rows, columns).

    R: upper factor (columns, columns); scale, zero_point: (groups, rows); group_of: group of a column; mask: bool (rows,
    columns), False where the weight was pruned.
    """
    arrays = _numpy(W, R, scale, zero_point, group_of, mask, codes, errors)
    _round_block(*arrays, np.float32(top), start, stop)


@compiled()
def _round_block(W, R, scale, zero_point, group_of, mask, codes, errors, top, start, stop):
    for t in prange(-(-len(W) // TILE)):
        first, count = t * TILE, min(TILE, len(W) - t * TILE)
        w, error = np.empty((stop - start, count), np.float32), np.empty(count, np.float32)
        for k in range(count):
            for i in range(stop - start):
                w[i, k] = W[first + k, start + i]
        for i in range(stop - start):
            s = scale[group_of[start + i], first : first + count]
            z = zero_point[group_of[start + i], first : first + count]
            pivot = R[start + i, start + i]
            for k in range(count):
                code = min(max(np.rint(w[i, k] / s[k] + z[k]), np.float32(0)), top)
                value = (code - z[k]) * s[k] if mask[first + k, start + i] else np.float32(0)
                error[k] = (w[i, k] - value) / pivot
                w[i, k] = code
            for j in range(i + 1, stop - start):
                h = R[start + i, start + j]
                for k in range(count):
                    w[j, k] -= error[k] * h
            for k in range(count):
                errors[first + k, i] = error[k]
        for k in range(count):
            for i in range(stop - start):
                codes[first + k, start + i] = np.uint8(w[i, k])


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
    """Columns start:stop of SparseGPT: W (rows, columns) of what is mask, and errors (rows, stop - start).

    R: upper factor (columns, columns); mask: bool (rows, columns), an input, or with `of` > 0 an output: of every `of`
    neighbours, the `zeros` with the least loss (w / pivot)^2 are pruned once the columns before are done.
    """
    _prune_block(*_numpy(W, R, mask, errors), zeros, of, start, stop)


@compiled()
def _prune_block(W, R, mask, errors, zeros, of, start, stop):
    for r in prange(len(W)):
        w = W[r, start:stop].copy()
        loss = np.empty(max(of, 1), np.float32)
        for i in range(stop - start):
            if of and i % of == 0:
                for j in range(of):
                    pivot = R[start + i + j, start + i + j]
                    loss[j] = (w[i + j] / pivot) ** 2
                    mask[r, start + i + j] = True
                for j in np.argsort(loss)[:zeros]:
                    mask[r, start + i + j] = False
            errors[r, i] = 0
            if not mask[r, start + i]:
                errors[r, i] = error = w[i] / R[start + i, start + i]
                w[i] = 0
                for j in range(i + 1, stop - start):
                    w[j] -= error * R[start + i, start + j]
            W[r, start + i] = w[i]


def descend_kept(
    W: torch.Tensor, gradient: torch.Tensor, H: torch.Tensor, mask: torch.Tensor
) -> None:
    """One sweep of coordinate descent over the weights that are mask; W and gradient change in place.

    gradient: (rows, columns), (W - target) H for the current weights.
    """
    _descend_kept(*_numpy(W, gradient, H, mask))


@compiled()
def _descend_kept(W, gradient, H, mask):
    for r in prange(len(W)):
        for i in range(len(H)):
            if mask[r, i]:
                step = -gradient[r, i] / H[i, i]
                W[r, i] += step
                for j in range(len(H)):
                    gradient[r, j] += step * H[i, j]


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
    """One sweep of coordinate descent over codes; codes and gradient change in place.

    gradient: (rows, columns), (Q - W) H for the current codes; order: columns in the order to visit.
    """
    _descend(*_numpy(codes, gradient, H, scale, zero_point, group_of, order, mask), np.float32(top))


@compiled()
def _descend(codes, gradient, H, scale, zero_point, group_of, order, mask, top):
    for r in prange(len(codes)):
        for i in order:
            if not mask[r, i]:
                continue
            s, z = scale[r, group_of[i]], zero_point[r, group_of[i]]
            value = (np.float32(codes[r, i]) - z) * s
            code = min(max(np.rint((value - gradient[r, i] / H[i, i]) / s + z), np.float32(0)), top)
            step = (code - z) * s - value
            if step != 0:
                codes[r, i] = np.uint8(code)
                for j in range(len(H)):
                    gradient[r, j] += step * H[i, j]
