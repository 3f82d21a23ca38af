"""Assignment of a width or sparsity to each layer: the exact optimum of an integer program.

Every layer takes exactly one variant. Its cost was measured with that layer alone compressed; the program adds costs and bytes
over layers, and the sum of costs is an approximation, so callers measure the result. Solved by scipy's milp (HiGHS).
"""

import numpy as np

_MILLION = 1e6  # sums are scaled to this, far above the solver's absolute tolerances


def allocate(
    costs: np.ndarray, sizes: np.ndarray, budget: float | None = None, most: float | None = None
) -> tuple[np.ndarray, float, float] | None:
    """Index of each layer's variant, and the sums of cost and bytes; None where no assignment meets the limit.

    costs, sizes: (layers, variants). budget: the bytes allowed, for the least cost; or most: the cost allowed, for the fewest bytes.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, widths = costs.shape
    objective, limited, limit = (
        (costs, sizes, budget) if budget is not None else (sizes, costs, most)
    )
    scale = [_MILLION / max(values.max(1).sum(), 1e-300) for values in (objective, limited)]
    one_each = LinearConstraint(np.kron(np.eye(layers), np.ones(widths)), 1, 1)
    within = LinearConstraint(scale[1] * limited.reshape(1, -1), -np.inf, scale[1] * (limit or 0.0))
    solution = milp(
        scale[0] * objective.ravel(),
        integrality=np.ones(objective.size),
        bounds=Bounds(0, 1),
        constraints=[one_each, within],
        options={"mip_rel_gap": 0},
    )
    if solution.x is None:
        return None
    chosen = solution.x.reshape(layers, widths).argmax(1)
    rows = np.arange(layers)
    return chosen, float(costs[rows, chosen].sum()), float(sizes[rows, chosen].sum())


def frontier(costs: np.ndarray, sizes: np.ndarray, points: int = 24) -> list[dict]:
    """Least sums of cost for budgets between the smallest and the largest assignment."""
    budgets = np.geomspace(sizes.min(1).sum(), sizes.max(1).sum(), points)
    assignments = (allocate(costs, sizes, budget=float(budget) * (1 + 1e-9)) for budget in budgets)
    return [
        {"cost": cost, "bytes": size, "chosen": chosen.tolist()}
        for chosen, cost, size in filter(None, assignments)
    ]
