"""Layers pruned by any method, by themselves or with those that share their input; weights change in place."""

from collections.abc import Iterator

import torch

from kerf.calibration.hessian import corrected, moments
from kerf.calibration.layer import Layer
from kerf.calibration.offload import park
from kerf.config.methods import PRUNING_METHODS
from kerf.config.prune import Prune
from kerf.core.registry import resolved
from kerf.prune import magnitude


def prune_by_weights(
    layers: dict, step: Prune, shares: dict[str, float] | None = None
) -> Iterator[tuple[str, torch.Tensor, str]]:
    """Prune each layer by what its weights alone say: by the step's method where that asks no more, else by magnitude.

    shares: see `prune_group`.
    """
    if getattr(step, "scope", "layer") == "global" and layers:
        found = magnitude.together(
            {name: layer.weight.data for name, layer in layers.items()}, step.sparsity
        )
        yield from ((name, _set(layers[name], weight), "") for name, weight in found.items())
        return
    method = PRUNING_METHODS[
        step.method if PRUNING_METHODS[step.method].calibration == "none" else "magnitude"
    ]
    for name, layer in layers.items():
        weight, note = resolved(method.layer)(
            Layer(name, layer.weight.data, at(step, name, shares))
        )
        yield name, _set(layer, weight), note


def at(step: Prune, name: str, shares: dict[str, float] | None) -> Prune:
    """The step as it is for a layer."""
    return step.model_copy(update={"sparsity": shares[name]}) if shares else step


def prune_group(
    layers: dict, inputs: list, step: Prune, shares: dict[str, float] | None = None
) -> Iterator[tuple[str, torch.Tensor, str]]:
    """Prune layers that share an input. inputs: of the net, and of the one as it was beside it; shares: sparsity of
    each layer, where they differ."""
    H, drift, tokens = moments(*inputs)
    method = PRUNING_METHODS[step.method]
    shared = resolved(method.shared)(H, step) if method.shared else None
    weights = [layer.weight.data.float() for layer in layers.values()]
    targets = [None] * len(weights)
    if drift is not None:
        targets = corrected(torch.cat(weights), H, drift, tokens).split(
            [len(weight) for weight in weights]
        )
    for (name, layer), weight, target in zip(layers.items(), weights, targets, strict=True):
        found, note = resolved(method.layer)(
            Layer(name, weight, at(step, name, shares), H, target, shared=shared)
        )
        yield name, _set(layer, found), note


def prune_at_levels(
    weight: torch.Tensor, second: torch.Tensor | None, step: Prune, levels: tuple[float, ...]
) -> Iterator[torch.Tensor]:
    """A weight by itself at every level of sparsity, as the step's method would prune it; second: moments of its input."""
    weight, method = weight.float(), PRUNING_METHODS[step.method]
    if second is None and method.calibration != "none":
        method = PRUNING_METHODS["magnitude"]
    shared = resolved(method.shared)(second, step) if method.shared else None
    for level in levels:
        here = step.model_copy(update={"sparsity": level})
        yield (
            resolved(method.layer)(Layer("", weight, here, second, shared=shared))[0]
            if level
            else weight
        )


def _set(layer, weight) -> torch.Tensor:
    layer.weight.data = park(weight.to(layer.weight.dtype).contiguous())
    return layer.weight.data
