"""One layer under the saw: what a choice of grid and sparsity does to its weights, its output and an answer of the model.

Quick enough to follow a slider, since one layer is cut alone and everything else stays float: the whole model is
`pipeline.build`'s, and loses more than its layers one by one. Not here: sliders.
"""

from dataclasses import dataclass, replace

import torch

from kerf.calibration import activations, hessian
from kerf.config import METHODS, STEPS, Calibration, parse
from kerf.core.errors import refuse
from kerf.models import architecture, families, registry
from kerf.quantize.compress import one_layer
from kerf.tensors import masks, parquet
from kerf.tensors.quantized import Quantized

CELL = 64  # columns whose errors are shown together where the whole row shares a scale


@dataclass(frozen=True)
class LayerConfig:
    """What can be chosen for a layer; group_size None: one scale a row."""

    method: str = "rtn"
    bits: int = 4
    group_size: int | None = 64
    clip: str = "none"
    sparsity: float = 0.0

    def steps(self) -> list[dict]:
        """The chain that does it to every layer: what an experiment's candidate says.

        Methods that can prune do so in the same pass; a choice that the method has no key for is left out.
        """
        keys = METHODS[self.method].parameters.model_fields
        asked = {"bits": self.bits, "clip": self.clip, "group_size": self.group_size}
        chosen = {key: value for key, value in asked.items() if key in keys and value is not None}
        grid = {"method": self.method, **chosen}
        if not self.sparsity:
            return [{"quantize": grid}]
        if "sparsity" in keys:
            return [{"quantize": {**grid, "sparsity": self.sparsity}}]
        return [
            {"prune": {"method": "wanda", "sparsity": self.sparsity, "sweeps": 0}},
            {"quantize": grid},
        ]


@dataclass(frozen=True)
class LayerResult:
    """A layer before and after. error: squared error of its output on the calibration text over its squared output."""

    name: str
    choice: LayerConfig
    before: torch.Tensor  # (rows, columns)
    quantized: Quantized
    error: float | None
    bytes: int

    def after(self) -> torch.Tensor:
        """(rows, columns) as the cut layer computes with them."""
        return self.quantized.dequantize()

    def by_group(self) -> torch.Tensor:
        """(rows, groups): squared error of the weights of a group over the layer's mean squared weight."""
        size = self.choice.group_size or next(
            s for s in range(CELL, 0, -1) if self.before.shape[1] % s == 0
        )
        lost = (self.after() - self.before).square_().view(len(self.before), -1, size)
        return lost.mean(-1) / self.before.square().mean()


class LayerSession:
    """A model held open, with what its calibration text put into every layer."""

    def __init__(self, model: str, calibration: Calibration) -> None:
        """Raises InputError as `models.resolve` and `calibrate.calibrate` do."""
        self.model = model
        self.second = activations.second_moments(activations.calibrate(model, calibration))
        self.opened = registry.open_model(model)
        self.kind = families.of_opened(self.opened)
        self.reader = self.kind.reader(self.opened)
        self.layers = {
            name: layer
            for name, layer in architecture.linears(registry.network(self.opened)).items()
            if name in self.second
        }
        self._asked: tuple[tuple[str, ...], torch.Tensor] | None = None

    @torch.no_grad()
    def cut(self, name: str, choice: LayerConfig) -> LayerResult:
        """The layer `name` alone. Raises InputError for a group size that does not divide its columns."""
        layer, second = self.layers[name], self.second[name]
        before, columns = layer.weight.detach(), layer.weight.shape[1]
        if columns % (choice.group_size or 1):
            raise refuse(
                "group_size", choice.group_size, f"a divisor of the {columns} columns of {name}"
            )
        *pruned, last = choice.steps()
        step = parse(STEPS["quantize"], last["quantize"], "quantize")
        if pruned:
            kept = masks.lowest(masks.wanda(before, second.diagonal()), choice.sparsity)
            layer = torch.nn.Linear(columns, len(before), bias=False, device="meta")
            layer.weight = torch.nn.Parameter(before * kept, requires_grad=False)
        quantized = one_layer(name, layer, step, second)
        quantized = replace(quantized, kept=kept) if pruned else quantized
        error = hessian.output_error(before, quantized.dequantize(), second)
        return LayerResult(name, choice, before, quantized, error, parquet.row_bytes(quantized))

    @torch.no_grad()
    def output_diff(
        self, texts: tuple[str, ...], cut: LayerResult | None = None, candidate=None
    ) -> list[tuple[str, float, float]]:
        """What the baseline answers, and what it does with a cut layer in its place, or what a whole candidate does: rows
        (what, before, after) of the kind's `told`."""
        if self._asked is None or self._asked[0] != texts:
            self._asked = texts, self.kind.output(self.opened, self.reader, texts)
        before = self._asked[1]
        if candidate is not None:
            return self.kind.output_diff(
                self.reader, before, self.kind.output(candidate, self.reader, texts)
            )
        if cut is None:
            return self.kind.output_diff(self.reader, before, before)
        layer = self.layers[cut.name]
        layer.weight.data = cut.after()
        try:
            return self.kind.output_diff(
                self.reader, before, self.kind.output(self.opened, self.reader, texts)
            )
        finally:
            layer.weight.data = cut.before
