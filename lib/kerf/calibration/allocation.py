"""Which layer gets how many bits: an exact answer, by an integer program.

Every layer takes exactly one width. What a layer costs in fidelity at a width was measured with that layer
alone cut (`kerf.quantize.mixed_precision`); the program takes costs and bytes as sums over layers, the first of
which is an approximation, so callers check what they get. Solved by scipy's milp (HiGHS).
"""

import numpy as np

_MILLION = 1e6  # the sums are brought to this size, far above the solver's absolute tolerances


def allocate(
    costs: np.ndarray, sizes: np.ndarray, budget: float | None = None, most: float | None = None
):
    """Index of the width of each layer, and the sums of cost and bytes; None when there is no answer.

    costs, sizes: (layers, widths). budget: the bytes allowed, for the least cost; or most: the cost
    allowed, for the fewest bytes.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, widths = costs.shape
    goal, limited, limit = (costs, sizes, budget) if budget is not None else (sizes, costs, most)
    scale = [_MILLION / max(values.max(1).sum(), 1e-300) for values in (goal, limited)]
    one_each = LinearConstraint(np.kron(np.eye(layers), np.ones(widths)), 1, 1)
    within = LinearConstraint(scale[1] * limited.reshape(1, -1), -np.inf, scale[1] * limit)
    found = milp(
        scale[0] * goal.ravel(),
        integrality=np.ones(goal.size),
        bounds=Bounds(0, 1),
        constraints=[one_each, within],
        options={"mip_rel_gap": 0},
    )
    if found.x is None:
        return None
    chosen = found.x.reshape(layers, widths).argmax(1)
    rows = np.arange(layers)
    return chosen, float(costs[rows, chosen].sum()), float(sizes[rows, chosen].sum())


def frontier(costs: np.ndarray, sizes: np.ndarray, points: int = 24) -> list[dict]:
    """Best sums of cost over budgets between the smallest and the largest assignment."""
    budgets = np.geomspace(sizes.min(1).sum(), sizes.max(1).sum(), points)
    found = [allocate(costs, sizes, budget=float(budget) * (1 + 1e-9)) for budget in budgets]
    return [
        {"cost": cost, "bytes": size, "chosen": chosen.tolist()} for chosen, cost, size in found
    ]
