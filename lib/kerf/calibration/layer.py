"""A linear layer as a method sees it, and the layers of a network one after another, each on what those before it became."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kerf.calibration.hessian import corrected, moments
from kerf.calibration.sequential import layer_inputs
from kerf.config.methods import Method
from kerf.core.registry import resolved
from kerf.models import architecture


@dataclass(frozen=True)
class Layer:
    """One linear layer.

    weight: (rows, columns). step: the method's parameters for this layer. H: (columns, columns) second moments of its input,
    any multiple of X^T X; None without calibration text. target: (rows, columns), the weight whose output is to be matched
    where the layers before changed the input (`kerf.calibration.hessian.corrected`); None: the weight itself. mask: bool
    (rows, columns), False where a weight was pruned and stays 0. shared: what the method's `shared` function made of H for all
    layers that share the input.
    """

    name: str
    weight: Tensor
    step: Any
    H: Tensor | None = None
    target: Tensor | None = None
    mask: Tensor | None = None
    shared: Any = None

    @property
    def target_weight(self) -> Tensor:
        """The target, or the weight itself."""
        return self.weight if self.target is None else self.target


@dataclass(frozen=True)
class Calibrated:
    """A network with its calibration text.

    net: changed in place; reference: the same network, unchanged; groups: names of layers that share an input
    (`kerf.calibration.activations.groups_of`); batches: inputs of the network.
    """

    net: nn.Module
    reference: nn.Module
    groups: list[list[str]]
    batches: list[dict]

    @property
    def layers(self) -> dict[str, torch.nn.Linear]:
        """The linear layers of `net` by name."""
        return architecture.linears(self.net)


def with_shared(method: Method, layer: Layer) -> Layer:
    """`layer` with the method's shared factor of its H."""
    return (
        replace(layer, shared=resolved(method.shared)(layer.H, layer.step))
        if method.shared
        else layer
    )


def sequential_layers(
    text: Calibrated,
    method: Method,
    step_of: Callable[[str], Any],
    skip: Callable[[str], bool] = lambda name: False,
) -> Iterator[Layer]:
    """The layers that calibration text reaches, in the order they run, for a method that calibrates each on the network so far.

    The caller changes a layer's weight before it asks for the next one. Layers that share an input share one H and one factor.
    With asymmetric calibration, the target undoes the error of the layers before (`corrected`). step_of: parameters of a layer by name.
    """
    layers = text.layers
    asymmetric = getattr(step_of(next(iter(layers))), "asymmetric_calibration", False)
    networks = (text.net, text.reference) if asymmetric else (text.net,)
    walks = (layer_inputs(net, text.groups, text.batches, rounded=True) for net in networks)
    for stops in zip(*walks, strict=True):
        names = [name for name in stops[0][0] if not skip(name)]
        if not names:
            continue
        H, drift, tokens = moments(*(inputs for _, inputs in stops))
        weights = [layers[name].weight.data for name in names]
        targets: list[Tensor | None] = [None] * len(names)
        if drift is not None:
            stacked = corrected(torch.cat(weights), H, drift, tokens)
            targets = list(stacked.split([len(weight) for weight in weights]))
        first = with_shared(method, Layer(names[0], weights[0], step_of(names[0]), H))
        for name, weight, target in zip(names, weights, targets, strict=True):
            yield replace(first, name=name, weight=weight, step=step_of(name), target=target)
