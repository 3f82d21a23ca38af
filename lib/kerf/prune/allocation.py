"""A sparsity for each layer by what pruning it costs, with the same number of weights left as one sparsity for all.

Every linear layer at every level of LEVELS, with it alone pruned, on held-out calibration text
(`kerf.calibration.layer_sensitivity`); then the assignment of least summed cost that keeps as many weights as the step's sparsity,
by the integer program that also assigns mixed bits (`kerf.calibration.allocation`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kerf.calibration.allocation import allocate
from kerf.calibration.candidate import StepContext
from kerf.calibration.layer_sensitivity import cost_per_layer, second_moments
from kerf.config.methods import PRUNING_METHODS
from kerf.core.cache import artifact
from kerf.models import architecture, registry
from kerf.prune.check import LEVELS
from kerf.prune.layers import prune_at_levels


def allocated(context: StepContext) -> dict[str, float]:
    """Sparsity of every linear layer of the model that the step starts from; `check` came before.

    Raises InputError when the calibration text leaves no held-out sentences.
    """
    table = costs_by_level(context)
    costs, weights_left = np.array(table["costs"]).clip(min=0), np.array(table["bytes"], float)
    sizes = table["weights"]
    budget = (1 - context.step.sparsity) * sum(sizes) + len(sizes)  # a weight a layer for rounding
    assignment = allocate(costs, weights_left, budget=budget)
    assert assignment is not None  # `check` refused sparsities above the last level
    levels = (LEVELS[index] for index in assignment[0])
    return dict(zip(table["layers"], levels, strict=True))


def costs_by_level(context: StepContext) -> dict:
    """Layers, their number of weights, and costs and weights left, (layers, levels) each; kept as an artifact."""
    key = {**context.key(), "step": context.step.method, "levels": LEVELS}
    modules = PRUNING_METHODS[context.step.method].modules()
    folder = artifact("allocation", key, lambda folder: _make(context, folder), also=modules)
    return json.loads((folder / "table.json").read_text())


def _make(context: StepContext, folder: Path) -> dict:
    opened = context.open()
    layers = architecture.linears(registry.network(opened))

    def levels_of(name: str, layer: Any, second: Tensor | None) -> Iterator[tuple[Tensor, int]]:
        for weight in prune_at_levels(layer.weight.data, second, context.step, LEVELS):
            yield weight, int((weight != 0).sum())

    second = second_moments(context, opened)
    costs = cost_per_layer(opened, list(layers), levels_of, context.calibration, second)
    sizes = [layer.weight.numel() for layer in layers.values()]
    table = {"layers": list(layers), "weights": sizes, **costs}
    (folder / "table.json").write_text(json.dumps(table))
    return {}
