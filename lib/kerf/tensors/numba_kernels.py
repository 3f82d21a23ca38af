"""The inner loops for CPU tensors, compiled by numba: torch would pass over memory once for every operation.

Rows of a weight are independent of one another, so each loop runs over rows in parallel and gives the same result on any
number of threads. The first call of each compiles it (seconds) and keeps the code on disk. `kerf.tensors.torch_kernels` has
the same functions for other devices. All of them change their outputs in place; W and errors are float32, codes uint8, mask bool.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, prange, set_num_threads

BLOCK = 128  # columns whose updates to all later columns are applied at once
TILE = 16  # rows that go through a block together: as many as fit a vector register
REASSOCIATE = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they vectorize


def _compiled(loop: Callable[..., None], **options: Any) -> Callable[..., None]:
    """`loop` compiled; it is called with tensors (or tuples of them), and computes on their memory with torch's number of threads."""
    jitted: Any = njit(parallel=True, cache=True, **options)(loop)

    def call(*arguments: Any) -> None:
        set_num_threads(torch.get_num_threads())
        flat = [
            part for each in arguments for part in (each if isinstance(each, tuple) else [each])
        ]
        jitted(*(part.numpy() if isinstance(part, torch.Tensor) else part for part in flat))

    return call


def _keep_better(groups, weights, top, factor, scale, zero_point, error, best, best_s, best_z):
    """Put each group's grid into the best one where it has the smaller weighted squared error.

    groups: (rows, groups, size); weights: (groups, size) of the squared error; trial: (factor, scale, zero_point), each
    (rows, groups), all float32; best: (error, factor, scale, zero_point), changed in place.
    """
    most = np.float32(top)
    for r in prange(len(groups)):
        for g in range(groups.shape[1]):
            s, z, total = scale[r, g], zero_point[r, g], np.float32(0)
            inverse = np.float32(1) / s
            for i in range(groups.shape[2]):
                place = groups[r, g, i] * inverse + z
                code = min(max(np.rint(place), np.float32(0)), most)
                total += (code - place) * (code - place) * weights[g, i]
            total *= s * s
            if total < error[r, g]:
                error[r, g], best[r, g], best_s[r, g], best_z[r, g] = total, factor[r, g], s, z


def _round_block(W, R, scale, zero_point, group_of, top, mask, codes, errors, start, stop):
    """Columns start:stop of GPTQ: codes and errors (rows, stop - start) from W (rows, columns).

    R: upper factor (columns, columns); grid: scale, zero_point (groups, rows); group_of: group of a column; mask: (rows,
    columns), False where the weight was pruned.
    """
    most = np.float32(top)
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
                code = min(max(np.rint(w[i, k] / s[k] + z[k]), np.float32(0)), most)
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


def _prune_block(W, R, mask, zeros, of, errors, start, stop):
    """Columns start:stop of SparseGPT: the pruned W (rows, columns), and errors (rows, stop - start).

    R: upper factor (columns, columns); mask: (rows, columns), an input, or with `of` > 0 an output: of every `of` neighbours,
    the `zeros` with the least loss (w / pivot)^2 are pruned once the columns before are done.
    """
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


def _descend_kept(W, gradient, H, mask):
    """One sweep of coordinate descent over the weights that the mask keeps.

    gradient: (rows, columns), (W - target) H for the current weights.
    """
    for r in prange(len(W)):
        for i in range(len(H)):
            if mask[r, i]:
                step = -gradient[r, i] / H[i, i]
                W[r, i] += step
                for j in range(len(H)):
                    gradient[r, j] += step * H[i, j]


def _descend(codes, gradient, H, scale, zero_point, group_of, order, top, mask):
    """One sweep of coordinate descent over codes.

    gradient: (rows, columns), (Q - W) H for the current codes; grid: scale, zero_point (rows, groups); order: columns in the
    order to visit.
    """
    most = np.float32(top)
    for r in prange(len(codes)):
        for i in order:
            if not mask[r, i]:
                continue
            s, z = scale[r, group_of[i]], zero_point[r, group_of[i]]
            value = (np.float32(codes[r, i]) - z) * s
            code = min(
                max(np.rint((value - gradient[r, i] / H[i, i]) / s + z), np.float32(0)), most
            )
            step = (code - z) * s - value
            if step != 0:
                codes[r, i] = np.uint8(code)
                for j in range(len(H)):
                    gradient[r, j] += step * H[i, j]


keep_better = _compiled(_keep_better, fastmath=REASSOCIATE)
round_block, prune_block = _compiled(_round_block), _compiled(_prune_block)
descend_kept, descend = _compiled(_descend_kept), _compiled(_descend)
