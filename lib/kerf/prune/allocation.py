"""Which layer loses how much: sparsities by what each layer costs, for the same number of weights as one for all.

Every linear layer at every level of LEVELS, with it alone pruned, on calibration text that was held back
(`kerf.quantize.sensitivity`); then the assignment of least summed cost that keeps as many weights as the step
asks for, by the integer program that gives mixed bits (`kerf.quantize.allocate`).
"""

import json
from pathlib import Path

import numpy as np

from kerf import calibrate, models, texts
from kerf.artifacts import artifact, meta
from kerf.errors import refuse
from kerf.quantize.allocate import allocate
from kerf.quantize.sensitivity import SENTENCES, alone
from kerf.steps import Calibration, Prune

LEVELS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def check(model: str, step: Prune) -> None:
    """Refuse a language model, and a share above all levels."""
    models.check_kind(model, "allocation: sensitivity", "encoder")
    if step.sparsity > LEVELS[-1]:
        raise refuse("sparsity", step.sparsity, f"at most {LEVELS[-1]} with allocation sensitivity")


def allocated(model: str, step: Prune, calibration: Calibration, device: str = "cpu") -> dict[str, float]:
    """Sparsity of every linear layer; `check` came before. Raises Refused when the calibration text leaves no sentences."""
    table = json.loads((_table(model, step, calibration, device) / "table.json").read_text())
    costs, kept = np.array(table["costs"]).clip(min=0), np.array(table["bytes"], float)
    whole = [rows * columns for rows, columns in models.describe(model)["linears"].values()]
    chosen, _, _ = allocate(costs, kept, budget=(1 - step.sparsity) * sum(whole) + len(whole))  # a weight a layer for rounding
    return {name: LEVELS[index] for name, index in zip(table["layers"], chosen, strict=True)}


def _table(model, step, calibration, device) -> Path:
    """Artifact with table.json: layers, costs and kept weights (layers, levels)."""
    moments = calibrate.calibrate(model, calibration, device)
    held = texts.held_back(calibration.texts, calibration.samples, calibration.seed)[:SENTENCES]
    key = {"method": step.method, "calibration": meta(moments)["key"], "levels": LEVELS, "held": held}
    return artifact("allocation", key, lambda folder: _make(folder, model, step, calibration, moments, held, device))


def _make(folder, model, step, calibration, moments, held, device) -> dict:
    from kerf.prune.layers import alone_pruned

    names = list(models.describe(model)["linears"])

    def cuts(_, layer, second):
        for weight in alone_pruned(layer.weight.data, second, step, LEVELS):
            yield weight, int((weight != 0).sum())

    table = {"layers": names, **alone(model, names, cuts, calibration, moments, held, device)}
    (folder / "table.json").write_text(json.dumps(table))
    return {"sentences": len(held)}
