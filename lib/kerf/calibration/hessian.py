"""Second moments of a layer's input, H = X^T X: summed, damped and factorized, and the output error they give.

GPTQ, SparseGPT and the least-squares targets of structured pruning and INT8 share these few functions. The Hessian of a
layer's squared output error is 2 H, for every row of its weight (Hassibi and Stork 1993; Frantar et al. 2022).
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from kerf.tensors.matmul_precision import rounded_products

DAMPING = 0.1  # share of the mean of the diagonal that is added to it
RIDGE = 18.0  # the same for `corrected`, times columns over tokens
TRIANGLE = 256  # columns of a block of X^T X: narrower ones save arithmetic and lose speed


def add_second_moments(total: Tensor, inputs: Tensor) -> None:
    """Add X^T X of inputs (tokens, features) to the upper triangle of `total`, in blocks that reach below it."""
    for start in range(0, len(total), TRIANGLE):
        stop = start + TRIANGLE
        total[start:stop, start:].addmm_(inputs[:, start:stop].T, inputs[:, start:])


def complete(total: Tensor, name: str = "a layer") -> None:
    """Copy the upper triangle onto the lower one. Raises ValueError for sums that are NaN or infinite, with the layer's name."""
    if not total.diagonal().isfinite().all():
        raise ValueError(
            f"the model gives NaN or infinity for calibration text, first in the inputs of {name}"
        )
    for start in range(TRIANGLE, len(total), TRIANGLE):
        total[start:, start - TRIANGLE : start] = total[start - TRIANGLE : start, start:].T


def moments(
    inputs: Iterable[Tensor], originals: Iterator[Tensor] | None = None
) -> tuple[Tensor, Tensor | None, int]:
    """H = X^T X over all batches, the drift (F - X)^T X, and the number of tokens.

    inputs: X, batches of (tokens, columns); originals: F, the inputs of the float model; None: no drift.
    """
    (H,), drift, tokens = moments_by_part(inputs, originals, lambda turn, X: 0)
    return H, drift, tokens


def moments_by_part(
    inputs: Iterable[Tensor],
    originals: Iterator[Tensor] | None,
    part_of: Callable[[int, Tensor], int],
) -> tuple[list[Tensor], Tensor | None, int]:
    """As `moments`, with one sum X^T X for each number that `part_of` (number of the batch, batch) gives."""
    sums: dict[int, Tensor] = {}
    drift, tokens = None, 0
    for turn, X in enumerate(inputs):
        tokens += len(X)
        square = (X.shape[1], X.shape[1])
        part = part_of(turn, X)
        if part not in sums:
            sums[part] = X.new_zeros(square)
        if drift is None and originals is not None:
            drift = X.new_zeros(square)
        with rounded_products():
            add_second_moments(sums[part], X)
            if originals is not None and drift is not None:
                drift.addmm_((next(originals) - X).T, X)
    for total in sums.values():
        complete(total)
    return list(sums.values()), drift, tokens


def output_error(before: Tensor, after: Tensor, second: Tensor) -> float | None:
    """Squared error of a layer's output over its squared output, for weights (rows, columns) and second moments (columns, columns).

    None where the output is zero.
    """
    error = after - before
    output = float(((before @ second) * before).sum())
    return float(((error @ second) * error).sum()) / output if output > 0 else None


def finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite, in one pass that allocates nothing."""
    low, high = tensor.aminmax()  # NaN propagates
    return bool(low.isfinite() and high.isfinite())


def damped(H: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag(H)) * I, a copy; dead columns get the mean."""
    mean, dead = H.diagonal().mean(), H.diagonal() == 0
    result = H.clone()
    result.diagonal().add_(damping * mean)
    result.diagonal()[dead] = mean
    return result


def inverse_factor(H: Tensor, damping: float = DAMPING) -> tuple[Tensor | None, float]:
    """Upper Cholesky factor of the inverse of damped H, and the damping it took.

    Damping grows tenfold while a factorization fails; past 1.0 the result is (None, damping) and the caller falls back to
    rounding to nearest.
    """
    if not finite(H) or H.diagonal().mean() <= 0:
        return None, damping
    while damping <= 1.0:
        # With rows and columns in reverse, the lower factor L of H gives H = U U^T for the upper U =
        # flip(L), so inverse(H) = R^T R with R = inverse(U): one factorization instead of two.
        L, failed = torch.linalg.cholesky_ex(damped(H, damping).flip(0, 1))
        if not failed:
            R = torch.linalg.solve_triangular(
                L.flip(0, 1), torch.eye(len(H), device=H.device), upper=True
            )
            if finite(R):
                return R.contiguous(), damping
        damping = max(10 * damping, DAMPING)
    return None, damping


def act_order(H: Tensor) -> Tensor:
    """Columns by falling second moment."""
    return torch.argsort(H.diagonal(), descending=True, stable=True)


def ordered(H: Tensor, order: Tensor) -> Tensor:
    """H with its rows and columns in another order; `index_select` is three times as fast as brackets."""
    return H.index_select(0, order).index_select(1, order)


def corrected(weight: Tensor, H: Tensor, drift: Tensor | None, tokens: int) -> Tensor:
    """The weight whose output on the compressed model's inputs X is closest to W's on the float model's, F.

    Least squares: W + W D (H + ridge)^-1 with H = X^T X and drift D = (F - X)^T X, both (columns, columns). Estimates of many
    columns from few tokens are noisy, so the ridge grows with columns / tokens. GPTAQ (arXiv:2504.02692) has the same
    objective, column by column. Returns the weight itself where H cannot be factorized.
    """
    L, failed = torch.linalg.cholesky_ex(damped(H, RIDGE * len(H) / tokens))
    if drift is None or failed or not finite(drift):
        return weight.float()
    moved = weight.float() + torch.cholesky_solve((weight.float() @ drift).T, L).T
    return moved.contiguous() if finite(moved) else weight.float()
