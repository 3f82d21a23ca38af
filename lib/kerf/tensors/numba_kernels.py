"""The inner loops, compiled by numba: what torch could only do with a pass over memory for every operation.

Rows of a weight are independent of one another, so each loop runs over rows in parallel and gives the same
result on any number of threads. The first call of each compiles it (seconds) and keeps the code on disk.
"""

import numpy as np
import torch
from numba import njit, prange, set_num_threads

BLOCK = 128  # columns whose updates to all later columns are applied at once
REASSOCIATE = {
    "reassoc",
    "contract",
    "nsz",
}  # sums may be reordered, which is what vectorizing takes


def _numpy(*tensors: torch.Tensor):
    """The tensors' memory as arrays; and as many threads as torch has."""
    set_num_threads(torch.get_num_threads())
    return [tensor.numpy() for tensor in tensors]


def keep_better(groups, importance, top: int, trial, best) -> None:
    """Put each group's grid of `trial` into `best` where it has the smaller weighted squared error.

    groups: (rows, groups, size); importance: (groups * size,); trial: (factor, scale, zero_point), each
    (rows, groups), all float32; best: (error, factor, scale, zero_point), changed in place.
    """
    weights = importance.view(groups.shape[1:])
    _keep_better(*_numpy(groups, weights, *trial, *best), np.float32(top))


@njit(parallel=True, fastmath=REASSOCIATE, cache=True)
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
    W, R, scale, zero_point, group_of, top: int, kept, codes, errors, start: int, stop: int
) -> None:
    """Columns start:stop of GPTQ: codes and errors (rows, stop - start) from W (rows, columns).

    R: upper factor (columns, columns); scale, zero_point: (groups, rows); group_of: group of a column; kept:
    bool (rows, columns), where the weight is not 0 for good.
    """
    _round_block(
        *_numpy(W, R, scale, zero_point, group_of, kept, codes, errors),
        np.float32(top),
        start,
        stop,
    )


@njit(parallel=True, cache=True)
def _round_block(W, R, scale, zero_point, group_of, kept, codes, errors, top, start, stop):
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
                value = (code - z[k]) * s[k] if kept[first + k, start + i] else np.float32(0)
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


def prune_block(W, R, kept, zeros: int, of: int, errors, start: int, stop: int) -> None:
    """Columns start:stop of SparseGPT: W (rows, columns) of what is kept, and errors (rows, stop - start).

    R: upper factor (columns, columns); kept: bool (rows, columns), given, or with `of` > 0 chosen here: of
    every `of` neighbours the `zeros` go whose loss (w / pivot)^2 is least once the columns before are done.
    """
    _prune_block(*_numpy(W, R, kept, errors), zeros, of, start, stop)


@njit(parallel=True, cache=True)
def _prune_block(W, R, kept, errors, zeros, of, start, stop):
    for r in prange(len(W)):
        w = W[r, start:stop].copy()
        loss = np.empty(max(of, 1), np.float32)
        for i in range(stop - start):
            if of and i % of == 0:
                for j in range(of):
                    pivot = R[start + i + j, start + i + j]
                    loss[j] = (w[i + j] / pivot) ** 2
                    kept[r, start + i + j] = True
                for j in np.argsort(loss)[:zeros]:
                    kept[r, start + i + j] = False
            errors[r, i] = 0
            if not kept[r, start + i]:
                errors[r, i] = error = w[i] / R[start + i, start + i]
                w[i] = 0
                for j in range(i + 1, stop - start):
                    w[j] -= error * R[start + i, start + j]
            W[r, start + i] = w[i]


def descend_kept(W, gradient, H, kept) -> None:
    """One sweep of coordinate descent over what is kept: each weight goes where the others want it; in place.

    gradient: (rows, columns), (W - target) H for the weights as they are.
    """
    _descend_kept(*_numpy(W, gradient, H, kept))


@njit(parallel=True, cache=True)
def _descend_kept(W, gradient, H, kept):
    for r in prange(len(W)):
        for i in range(len(H)):
            if kept[r, i]:
                step = -gradient[r, i] / H[i, i]
                W[r, i] += step
                for j in range(len(H)):
                    gradient[r, j] += step * H[i, j]


def descend(codes, gradient, H, scale, zero_point, group_of, order, top: int, kept) -> None:
    """One sweep of coordinate descent: each code goes where the others want it; codes, gradient in place.

    gradient: (rows, columns), (Q - W) H for the codes as they are; order: columns in the order to visit.
    """
    _descend(*_numpy(codes, gradient, H, scale, zero_point, group_of, order, kept), np.float32(top))


@njit(parallel=True, cache=True)
def _descend(codes, gradient, H, scale, zero_point, group_of, order, kept, top):
    for r in prange(len(codes)):
        for i in order:
            if not kept[r, i]:
                continue
            s, z = scale[r, group_of[i]], zero_point[r, group_of[i]]
            value = (np.float32(codes[r, i]) - z) * s
            code = min(max(np.rint((value - gradient[r, i] / H[i, i]) / s + z), np.float32(0)), top)
            step = (code - z) * s - value
            if step != 0:
                codes[r, i] = np.uint8(code)
                for j in range(len(H)):
                    gradient[r, j] += step * H[i, j]
