"""SparseGPT: prune column by column, and let the columns that are not pruned yet compensate for the error.

Frantar and Alistarh 2023 (arXiv:2301.00774). With Hinv the upper Cholesky factor of the inverse of H = X^T X, removing w from
column i costs (w / Hinv[i, i])^2, and every later column j changes by

    W[:, j] -= w / Hinv[i, i] * Hinv[i, j].

It is the recursion of GPTQ (`kerf.quantize.gptq`) with 0 in the place of the nearest point. The mask is chosen for a block of
columns at a time, from the weights as updated so far; N:M patterns are chosen every M columns. Sweeps of coordinate descent
then adapt the remaining weights, earlier columns included.
"""

import torch
from torch import Tensor

from kerf.calibration.hessian import finite, inverse_factor
from kerf.calibration.layer import Layer
from kerf.config.prune import SparseGPT
from kerf.prune import wanda
from kerf.tensors import kernels, numba_kernels
from kerf.tensors.masks import lowest_of_all


def factor(H: Tensor, step: SparseGPT) -> Tensor | None:
    """What layers of one input share: the inverse factor of H; None where it cannot be factorized."""
    return inverse_factor(H)[0]


def prune_layer(layer: Layer) -> tuple[Tensor, str]:
    """The weight pruned towards its target, or by Wanda where there is no factor or numbers overflow; and a note."""
    step, R, H = layer.step, layer.shared, layer.H
    assert H is not None  # the registry gives this method its second moments
    pattern = step.nm_pattern()
    pruned = None
    if R is not None:
        pruned = sparsegpt(layer.target_weight, H, R, step.sparsity, pattern, step.sweeps)
    if pruned is None:
        return wanda.prune_layer(layer)[0], "sparsegpt gave no finite weights: pruned by wanda"
    return pruned, ""


def sparsegpt(
    weight: Tensor,
    H: Tensor,
    R: Tensor,
    sparsity: float,
    pattern: tuple[int, int] | None = None,
    sweeps: int = 0,
) -> Tensor | None:
    """The pruned weight (rows, columns), float32; None where numbers overflow.

    H: (columns, columns) second moments of the input; R: `inverse_factor` of it. sparsity: share pruned of every block of
    columns; pattern: (N, M) instead, N mask of every M.
    """
    W = weight.float().clone()
    mask = torch.ones_like(W, dtype=torch.bool)
    zeros, of = (pattern[1] - pattern[0], pattern[1]) if pattern else (0, 0)
    for start in range(0, W.shape[1], numba_kernels.BLOCK):
        stop = min(start + numba_kernels.BLOCK, W.shape[1])
        if not pattern:
            pivots = R.diagonal()[start:stop]
            mask[:, start:stop] = lowest_of_all((W[:, start:stop] / pivots).square_(), sparsity)
        errors = W.new_empty(len(W), stop - start)
        kernels.of(W).prune_block(W, R, mask, zeros, of, errors, (start, stop))
        if not finite(errors):
            return None
        W[:, stop:].addmm_(errors, R[start:stop, stop:], alpha=-1)
    if sweeps:
        wanda.coordinate_descent(W, weight.float(), H, mask, sweeps)
    return W if finite(W) else None
