"""Pruning masks: the lowest scores of a layer, of a row, or of every M neighbours (N:M).

Scores: magnitude |w|; Wanda (Sun et al. 2023, arXiv:2306.11695) |w| times the root of the input's second
moment, compared within a row. N:M keeps N of every M neighbouring columns.
"""

import torch
from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """|w|, (rows, columns)."""
    return weight.abs().float()


def wanda(weight: Tensor, second: Tensor) -> Tensor:
    """|w| sqrt(E x^2), (rows, columns); second: (columns,) second moments of the input."""
    return weight.abs().float() * second.clamp(min=0).sqrt()


def lowest(scores: Tensor, sparsity: float) -> Tensor:
    """bool like scores: False for the `sparsity` share of the last dimension with the lowest scores."""
    pruned = scores.topk(round(sparsity * scores.shape[-1]), largest=False, sorted=False).indices
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, pruned, False)


def lowest_of_all(scores: Tensor, sparsity: float) -> Tensor:
    """bool (rows, columns): False for the `sparsity` share of all entries with the lowest scores."""
    return lowest(scores.reshape(1, -1), sparsity).view_as(scores)


def lowest_of_neighbours(scores: Tensor, keep: int, of: int) -> Tensor:
    """bool (rows, columns): True for the `keep` highest of every `of` neighbouring columns."""
    return lowest(scores.reshape(len(scores), -1, of), 1 - keep / of).view_as(scores)


def of_layer(scores: Tensor, sparsity: float, neighbours: tuple[int, int] | None) -> Tensor:
    """The mask by a pattern (N, M) where there is one, else of the `sparsity` share of the whole layer."""
    if neighbours:
        return lowest_of_neighbours(scores, *neighbours)
    return lowest_of_all(scores, sparsity)
