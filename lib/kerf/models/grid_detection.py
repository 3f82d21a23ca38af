"""Weights that lie on a low-bit grid already, as those of a model that was stored quantized and unpacked again.

Cutting such a layer to that very grid loses nothing, and proves nothing about the method. A group of
neighbours in a row lies on a grid when its values are whole steps apart, up to the rounding of floats,
with at most 256 steps from the lowest to the highest.
"""

import torch

GROUPS = (
    128,
    64,
    32,
    16,
)  # sizes that are tried, after the whole row; each where it divides the row
LEAST = 16  # columns: fewer floats may stand whole steps apart by chance
ROWS = 64  # of a layer that are looked at
SHARE = 0.99  # of the groups that have to lie on a grid
NEAR = 0.02  # of a step: what is left of a whole number of steps
WIDEST = 255  # steps


def grid_of(weight: torch.Tensor) -> tuple[int, int] | None:
    """(bits, group_size) of the coarsest grouping in which weight (rows, columns) lies on a grid; None: in none."""
    rows, columns = weight.shape
    if columns < LEAST:
        return None
    some = weight[:: max(1, rows // ROWS)][:ROWS].double()
    for group_size in (
        columns,
        *(size for size in GROUPS if size < columns and columns % size == 0),
    ):
        steps = _steps(some.reshape(-1, group_size))
        telling = steps[steps >= 0]
        if len(telling) and float((telling > 0).double().mean()) >= SHARE:
            top = float(telling.max())
            return max(1, int(torch.tensor(top + 1).log2().ceil())), group_size
    return None


def _steps(groups: torch.Tensor) -> torch.Tensor:
    """Steps from the lowest to the highest value of each group; 0: on no grid; -1: all values are one."""
    ordered = groups.sort(1).values
    span = ordered[:, -1:] - ordered[:, :1]
    gaps = ordered.diff(dim=1)
    apart = gaps > span / (4 * WIDEST)
    smallest = torch.where(apart, gaps, torch.inf).amin(1, keepdim=True)
    found = torch.zeros(len(groups), dtype=torch.double)
    for part in range(1, 9):  # the smallest gap may be several steps
        top = (span * part / smallest).round()
        offsets = (ordered - ordered[:, :1]) / span * top
        on = ((offsets - offsets.round()).abs().amax(1) < NEAR) & (top[:, 0] <= WIDEST)
        found = torch.where((found == 0) & on, top[:, 0], found)
    return torch.where(apart.any(1), found, -1.0)
