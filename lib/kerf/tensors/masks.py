"""Which weights go: the least by a score, over a layer, a row, or in every few neighbours (N:M).

Scores: magnitude |w|; Wanda (Sun et al. 2023, arXiv:2306.11695) |w| times the root of the input's second
moment, compared within a row. N:M keeps N of every M neighbouring columns.
"""

import torch


def magnitude(weight: torch.Tensor) -> torch.Tensor:
    """|w|, (rows, columns)."""
    return weight.abs().float()


def wanda(weight: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """|w| sqrt(E x^2), (rows, columns); second: (columns,) second moments of the input."""
    return weight.abs().float() * second.clamp(min=0).sqrt()


def lowest(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """bool like scores: False for the `sparsity` share of the last dimension with the lowest scores."""
    gone = round(sparsity * scores.shape[-1])
    kept = torch.ones_like(scores, dtype=torch.bool)
    return kept.scatter_(-1, scores.topk(gone, largest=False, sorted=False).indices, False)


def lowest_of_all(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """bool (rows, columns): False for the `sparsity` share of all entries with the lowest scores."""
    return lowest(scores.reshape(1, -1), sparsity).view_as(scores)


def lowest_of_neighbours(scores: torch.Tensor, keep: int, of: int) -> torch.Tensor:
    """bool (rows, columns): True for the `keep` highest of every `of` neighbouring columns."""
    return lowest(scores.reshape(len(scores), -1, of), 1 - keep / of).view_as(scores)


def of_layer(
    scores: torch.Tensor, sparsity: float, neighbours: tuple[int, int] | None
) -> torch.Tensor:
    """By a pattern (N, M) where there is one, else the `sparsity` share of the whole layer."""
    return (
        lowest_of_neighbours(scores, *neighbours) if neighbours else lowest_of_all(scores, sparsity)
    )
