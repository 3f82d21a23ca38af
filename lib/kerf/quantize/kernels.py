"""The inner loops, compiled by numba: what torch could only do with a pass over memory for every operation.

Rows of a weight are independent of one another, so each loop runs over rows in parallel and gives the same
result on any number of threads. The first call of each compiles it (seconds) and keeps the code on disk.
"""

import numpy as np
import torch
from numba import njit, prange, set_num_threads

REASSOCIATE = {"reassoc", "contract", "nsz"}  # sums may be reordered, which is what vectorizing takes


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
def _keep_better(groups, importance, factor, scale, zero_point, best_error, best_factor, best_scale, best_zero, top):
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


def round_block(W, R, scale, zero_point, group_of, top: int, codes, errors, start: int, stop: int) -> None:
    """Columns start:stop of GPTQ: codes and errors (rows, stop - start) from W (rows, columns).

    R: upper factor (columns, columns); scale, zero_point: (groups, rows); group_of: group of a column.
    """
    _round_block(*_numpy(W, R, scale, zero_point, group_of, codes, errors), np.float32(top), start, stop)


@njit(parallel=True, cache=True)
def _round_block(W, R, scale, zero_point, group_of, codes, errors, top, start, stop):
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
                error[k] = (w[i, k] - (code - z[k]) * s[k]) / pivot
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


def descend(codes, gradient, H, scale, zero_point, group_of, order, top: int) -> None:
    """One sweep of coordinate descent: each code goes where the others want it; codes, gradient in place.

    gradient: (rows, columns), (Q - W) H for the codes as they are; order: columns in the order to visit.
    """
    _descend(*_numpy(codes, gradient, H, scale, zero_point, group_of, order), np.float32(top))


@njit(parallel=True, cache=True)
def _descend(codes, gradient, H, scale, zero_point, group_of, order, top):
    for r in prange(len(codes)):
        for i in order:
            s, z = scale[r, group_of[i]], zero_point[r, group_of[i]]
            value = (np.float32(codes[r, i]) - z) * s
            code = min(max(np.rint((value - gradient[r, i] / H[i, i]) / s + z), np.float32(0)), top)
            step = (code - z) * s - value
            if step != 0:
                codes[r, i] = np.uint8(code)
                for j in range(len(H)):
                    gradient[r, j] += step * H[i, j]
