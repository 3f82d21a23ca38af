"""Weights that lie on a low-bit grid already, as those of a model that was stored quantized and unpacked later.

Quantizing such a layer to that very grid loses nothing, and proves nothing about the method. A group of neighbours in a row
lies on a grid when its values are whole steps apart, up to the rounding of floats, with at most MAX_STEPS steps in all.
"""

import math

import torch

GROUPS = (128, 64, 32, 16)  # sizes that are tried, after the whole row, where they divide the row
MIN_COLUMNS = 16  # fewer floats may lie whole steps apart by chance
ROWS = 64  # of a layer that are looked at
MIN_SHARE = 0.99  # of the groups that have to lie on a grid
TOLERANCE = 0.02  # of a step: distance from a whole number of steps
MAX_STEPS = 255


def grid_of(weight: torch.Tensor) -> tuple[int, int] | None:
    """(bits, group_size) of the coarsest grouping in which weight (rows, columns) lies on a grid; None: in none."""
    rows, columns = weight.shape
    if columns < MIN_COLUMNS:
        return None
    sample = weight[:: max(1, rows // ROWS)][:ROWS].cpu().double()
    for group_size in (columns, *(g for g in GROUPS if g < columns and columns % g == 0)):
        steps = _steps(sample.reshape(-1, group_size))
        steps = steps[steps >= 0]
        if len(steps) and float((steps > 0).double().mean()) >= MIN_SHARE:
            return max(1, math.ceil(math.log2(float(steps.max()) + 1))), group_size
    return None


def _steps(groups: torch.Tensor) -> torch.Tensor:
    """Steps from the lowest to the highest value of each group; 0: on no grid; -1: all values are equal."""
    values = groups.sort(1).values
    span = values[:, -1:] - values[:, :1]
    gaps = values.diff(dim=1)
    distinct = gaps > span / (4 * MAX_STEPS)
    smallest = torch.where(distinct, gaps, torch.inf).amin(1, keepdim=True)
    steps = torch.zeros_like(span[:, 0])
    for multiple in range(1, 9):  # the smallest gap may be several steps
        top = (span * multiple / smallest).round()
        offsets = (values - values[:, :1]) / span * top
        error = (offsets - offsets.round()).abs().amax(1)
        on_grid = (error < TOLERANCE) & (top[:, 0] <= MAX_STEPS)
        steps = torch.where((steps == 0) & on_grid, top[:, 0], steps)
    return torch.where(distinct.any(1), steps, -1.0)
