"""Layers pruned by any method, one at a time or together; weights change in place."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kerf.calibration.layer import Calibrated, Layer, noted, sequential_layers, with_shared
from kerf.calibration.offload import park
from kerf.config.methods import PRUNING_METHODS, Method
from kerf.core.registry import resolved
from kerf.prune import magnitude

Layers = dict[str, torch.nn.Linear]


class PrunedLayer(NamedTuple):
    """A layer of the result. weight: (rows, columns) with zeros, None where it has no counterpart to compare with.

    sparsity: share of the layer's weights that are zero or removed.
    """

    name: str
    weight: Tensor | None
    note: str
    sparsity: float


def prune_layers(
    text: Calibrated, step: Any, sparsities: dict[str, float] | None = None
) -> Iterator[PrunedLayer]:
    """Prune the layers of `text.net` in place by a method that works on single layers.

    step: the parameters of a `prune` step; sparsities: of each layer, where they differ.
    """
    layers, method = text.layers, PRUNING_METHODS[step.method]
    if method.calibration == "none":
        yield from prune_by_weights(layers, step, sparsities)
        return
    reached = set()
    for layer in sequential_layers(text, method, _step_of(step, sparsities)):
        reached.add(layer.name)
        if layer.H is None:
            weight, note = resolved(_without_text(step).layer)(layer)[0], "too few: by magnitude"
        else:
            weight, note = resolved(method.layer)(layer)
        yield _finish(layers, layer.name, weight, noted(layer.about, note))
    rest = {name: module for name, module in layers.items() if name not in reached}
    for pruned in prune_by_weights(rest, step, sparsities):
        yield pruned._replace(note="no calibration text reached it: pruned by magnitude")


def prune_by_weights(
    layers: Layers, step: Any, sparsities: dict[str, float] | None = None
) -> Iterator[PrunedLayer]:
    """Prune by the weights alone: by the step's method if it needs no calibration text, by magnitude otherwise."""
    if getattr(step, "scope", "layer") == "global" and layers:
        weights = {name: module.weight.data for name, module in layers.items()}
        for name, weight in magnitude.together(weights, step.sparsity).items():
            yield _finish(layers, name, weight, "")
        return
    method, step_of = _without_text(step), _step_of(step, sparsities)
    for name, module in layers.items():
        pruned = resolved(method.layer)(Layer(name, module.weight.data, step_of(name)))
        yield _finish(layers, name, *pruned)


def prune_at_levels(
    weight: Tensor, second: Tensor | None, step: Any, levels: tuple[float, ...]
) -> Iterator[Tensor]:
    """One weight at every level of sparsity, by the step's method; second: second moments of the layer's input."""
    method = PRUNING_METHODS[step.method] if second is not None else _without_text(step)
    layer = with_shared(method, Layer("", weight.float(), step, second))
    for level in levels:
        at_level = replace(layer, step=step.model_copy(update={"sparsity": level}))
        yield resolved(method.layer)(at_level)[0] if level else layer.weight


def _without_text(step: Any) -> Method:
    """The step's method, or magnitude where that needs calibration text."""
    method = PRUNING_METHODS[step.method]
    return method if method.calibration == "none" else PRUNING_METHODS["magnitude"]


def _step_of(step: Any, sparsities: dict[str, float] | None) -> Callable[[str], Any]:
    if not sparsities:
        return lambda name: step
    return lambda name: step.model_copy(update={"sparsity": sparsities[name]})


def _finish(layers: Layers, name: str, weight: Tensor, note: str) -> PrunedLayer:
    module = layers[name]
    module.weight.data = park(weight.to(module.weight.dtype).contiguous())
    return PrunedLayer(name, module.weight.data, note, float((weight == 0).float().mean()))
