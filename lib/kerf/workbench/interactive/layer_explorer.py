"""Quantize and prune one layer, fast enough for a slider: the effect on its weights, its output and the model's output."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from kerf.calibration import activations, hessian
from kerf.config import METHODS, STEPS, Calibration, parse
from kerf.core.errors import refuse
from kerf.models import architecture, families, registry
from kerf.quantize.compress import one_layer
from kerf.tensors import masks, parquet
from kerf.tensors.quantized import Quantized

MOST_COLUMNS = 64  # columns whose error is shown as one cell if the whole row shares a scale


@dataclass(frozen=True)
class LayerConfig:
    """Settings of one layer; group_size None: one scale per row."""

    method: str = "rtn"
    bits: int = 4
    group_size: int | None = 64
    clip: str = "none"
    sparsity: float = 0.0

    def steps(self) -> list[dict]:
        """The steps of a candidate that treats every layer so; a method that can prune does so in its own step."""
        keys = METHODS[self.method].parameters.model_fields
        settings = {"bits": self.bits, "clip": self.clip, "group_size": self.group_size}
        settings |= {"sparsity": self.sparsity or None}
        used = {key: value for key, value in settings.items() if key in keys and value is not None}
        quantize = {"quantize": {"method": self.method, **used}}
        if not self.sparsity or "sparsity" in keys:
            return [quantize]
        return [{"prune": {"method": "wanda", "sparsity": self.sparsity, "sweeps": 0}}, quantize]


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
        """(rows, columns): the weight that the compressed layer computes with."""
        return self.quantized.dequantize()

    def by_group(self) -> torch.Tensor:
        """(rows, groups): mean squared error of a group's weights over the layer's mean squared weight."""
        columns = self.before.shape[1]
        divisors = (size for size in range(MOST_COLUMNS, 0, -1) if columns % size == 0)
        size = self.choice.group_size or next(divisors)
        squared = (self.after() - self.before).square_().view(len(self.before), -1, size)
        return squared.mean(-1) / self.before.square().mean()


class LayerSession:
    """An open model with the second moments of the calibration text at the input of every layer."""

    def __init__(self, model: str, calibration: Calibration) -> None:
        """Raises InputError as `models.resolve` and `calibrate.calibrate` do."""
        self.model = model
        folder = activations.calibrate(model, calibration)
        self.second: dict[str, Any] = dict(activations.second_moments(folder))
        self.opened = registry.open_model(model)
        self.kind = families.of_opened(self.opened)
        self.reader = self.kind.reader(self.opened)
        linears = architecture.linears(registry.network(self.opened))
        self.layers = {name: layer for name, layer in linears.items() if name in self.second}
        self._baseline: tuple[tuple[str, ...], torch.Tensor] | None = None  # texts and output

    @torch.no_grad()
    def cut(self, name: str, choice: LayerConfig) -> LayerResult:
        """Compress the layer `name` alone. Raises InputError for a group size that does not divide its columns."""
        layer, second = self.layers[name], self.second[name]
        before, columns = layer.weight.detach(), layer.weight.shape[1]
        if columns % (choice.group_size or 1):
            accepted = f"a divisor of the {columns} columns of {name}"
            raise refuse("group_size", choice.group_size, accepted)
        *pruning, last = choice.steps()
        step: Any = parse(STEPS["quantize"], last["quantize"], "quantize")
        if pruning:
            mask = masks.lowest(masks.wanda(before, second.diagonal()), choice.sparsity)
            layer = torch.nn.Linear(columns, len(before), bias=False, device="meta")
            layer.weight = torch.nn.Parameter(before * mask, requires_grad=False)
            quantized = replace(one_layer(name, layer, step, second), mask=mask)
        else:
            quantized = one_layer(name, layer, step, second)
        error = hessian.output_error(before, quantized.dequantize(), second)
        return LayerResult(name, choice, before, quantized, error, parquet.row_bytes(quantized))

    @torch.no_grad()
    def output_diff(
        self, texts: tuple[str, ...], cut: LayerResult | None = None, candidate: Any = None
    ) -> list[tuple[str, float, float]]:
        """(what, baseline, after): after is of an opened `candidate`, or of the baseline with a compressed layer."""
        if self._baseline is None or self._baseline[0] != texts:
            self._baseline = texts, self.kind.output(self.opened, self.reader, texts)
        before = after = self._baseline[1]
        if candidate is not None:
            after = self.kind.output(candidate, self.reader, texts)
        elif cut is not None:
            weight = self.layers[cut.name].weight
            weight.data = cut.after()
            try:
                after = self.kind.output(self.opened, self.reader, texts)
            finally:
                weight.data = cut.before
        return self.kind.output_diff(self.reader, before, after)
