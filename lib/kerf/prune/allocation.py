"""Which layer loses how much: sparsities by what each layer costs, for the same number of weights as one for all.

Every linear layer at every level of LEVELS, with it alone pruned, on calibration text that was held back
(`kerf.calibration.layer_sensitivity`); then the assignment of least summed cost that keeps as many weights as the step
asks for, by the integer program that gives mixed bits (`kerf.calibration.allocation`).
"""

import json
from pathlib import Path

import numpy as np

from kerf.calibration import activations
from kerf.calibration.allocation import allocate
from kerf.calibration.layer_sensitivity import cost_per_layer, second_moments
from kerf.config import Calibration
from kerf.config.methods import PRUNING_METHODS
from kerf.config.prune import Prune
from kerf.core.cache import artifact
from kerf.models import architecture, registry
from kerf.prune.check import LEVELS


def allocated(
    model: str, step: Prune, calibration: Calibration, source: str | Path = ""
) -> dict[str, float]:
    """Sparsity of every linear layer, of the baseline or of a candidate `source`; `check` came before.

    Raises InputError when the calibration text leaves no sentences.
    """
    table = json.loads((_table(model, step, calibration, source) / "table.json").read_text())
    costs, kept = np.array(table["costs"]).clip(min=0), np.array(table["bytes"], float)
    whole = table["weights"]
    chosen, _, _ = allocate(
        costs, kept, budget=(1 - step.sparsity) * sum(whole) + len(whole)
    )  # a weight a layer for rounding
    return {name: LEVELS[index] for name, index in zip(table["layers"], chosen, strict=True)}


def _table(model, step, calibration, source) -> Path:
    """Artifact with table.json: layers, their weights, costs and kept weights (layers, levels)."""
    key = {
        "method": step.method,
        "calibration": activations.key_of(model, calibration),
        "levels": LEVELS,
        "source": registry.weights_digest(Path(source)) if source else None,
    }
    return artifact(
        "allocation",
        key,
        lambda folder: _make(folder, model, step, calibration, source),
        also=PRUNING_METHODS[step.method].modules(),
    )


def _make(folder, model, step, calibration, source) -> dict:
    from kerf.prune.layers import prune_at_levels

    opened = registry.open_source(model, source)
    layers = architecture.linears(registry.network(opened))

    def cuts(_, layer, second):
        for weight in prune_at_levels(layer.weight.data, second, step, LEVELS):
            yield weight, int((weight != 0).sum())

    second = second_moments(opened, model, source, calibration)
    table = {"layers": list(layers), "weights": [layer.weight.numel() for layer in layers.values()]}
    table |= cost_per_layer(opened, list(layers), cuts, calibration, second)
    (folder / "table.json").write_text(json.dumps(table))
    return {}
