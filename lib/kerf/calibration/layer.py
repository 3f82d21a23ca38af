"""A linear layer as a method sees it, and the layers of a network one after another, each on what those before it became."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kerf.calibration import activations
from kerf.calibration.hessian import corrected, moments_by_part
from kerf.calibration.sequential import layer_inputs
from kerf.calibration.shrinkage import found_share, shrunk
from kerf.config.methods import Method
from kerf.core.registry import resolved
from kerf.models import architecture
from kerf.models.linearized import EXPERT

# Tokens below which an expert is not calibrated: with 4 of them GPTQ lost up to 1.4 times what rounding to nearest loses on other
# tokens, with 32 no more (layers of MiniLM and SmolLM2, 3 and 4 bits in groups of 32).
FEW = 32
SEVERAL = "it runs several times: moments of all calls"


@dataclass(frozen=True)
class Layer:
    """One linear layer.

    weight: (rows, columns). step: the method's parameters for this layer. H: (columns, columns) second moments of its input,
    any multiple of X^T X; None without calibration text. target: (rows, columns), the weight whose output is to be matched
    where the layers before changed the input (`kerf.calibration.hessian.corrected`); None: the weight itself. mask: bool
    (rows, columns), False where a weight was pruned and stays 0. shared: what the method's `shared` function made of H for all
    layers that share the input. about: what a reader should know of its calibration text. measured: H before it was shrunk, for
    what tells the layer's error.
    """

    name: str
    weight: Tensor
    step: Any
    H: Tensor | None = None
    target: Tensor | None = None
    mask: Tensor | None = None
    shared: Any = None
    about: str = ""
    measured: Tensor | None = None

    @property
    def target_weight(self) -> Tensor:
        """The target, or the weight itself."""
        return self.weight if self.target is None else self.target


class Inputs(NamedTuple):
    """What is known of the inputs of layers that share them; fields as `hessian.moments` returns them, and of `Layer`."""

    H: Tensor | None
    drift: Tensor | None
    tokens: int
    about: str = ""
    measured: Tensor | None = None


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


def noted(*notes: str) -> str:
    """What there is to say of a layer, in one line."""
    return ", ".join(filter(None, notes))


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
    Layers that run several times come first, with the moments of all calls. H is None for an expert that saw too few tokens.
    """
    layers = text.layers
    step = step_of(next(iter(layers)))
    asymmetric = getattr(step, "asymmetric_calibration", False)
    for names, inputs in _inputs(text, step, asymmetric, skip):
        weights = {name: layers[name].weight.data for name in names if not skip(name)}
        yield from _group_of(weights, inputs, method, step_of)


def _inputs(
    text: Calibrated, step: Any, asymmetric: bool, skip: Callable[[str], bool]
) -> Iterator[tuple[list[str], Inputs]]:
    """Names of layers that share their inputs and are not all skipped, and what is known of these inputs."""
    several = activations.called_again(text.net, text.batches[0])
    again = [group for group in text.groups if group[0] in several]
    for seen in activations.all_calls(text.net, again, text.batches):
        yield seen.names, Inputs(seen.second, None, seen.tokens, SEVERAL, seen.second)
    once = [group for group in text.groups if group not in again]
    networks = (text.net, text.reference) if asymmetric else (text.net,)
    walks = (layer_inputs(net, once, text.batches, rounded=True) for net in networks)
    total = sum(int(batch["attention_mask"].sum()) for batch in text.batches)
    part_of = _parts(text, step)
    for stops in zip(*walks, strict=True):
        names = stops[0][0]
        if all(map(skip, names)):
            continue
        # The reference may route other tokens to an expert, so that has no drift.
        is_expert = EXPERT.fullmatch(names[0])
        originals = stops[1][1] if asymmetric and not is_expert else None
        parts, drift, tokens = moments_by_part(stops[0][1], originals, part_of)
        H, measured = _shrunk(parts, step)
        about = f"{tokens} of {total} tokens were routed to it" if is_expert else ""
        enough = tokens >= FEW or not is_expert
        yield names, Inputs(H if enough else None, drift, tokens, about, measured)


def _parts(text: Calibrated, step: Any) -> Callable[[int, Tensor], int]:
    """The part of H that a batch belongs to: its source, with one source every other batch, or all one."""
    if getattr(step, "shrinkage", 0) != "auto":
        return lambda turn, inputs: 0
    if any(getattr(batch, "source", 0) for batch in text.batches):
        return lambda turn, inputs: inputs.source  # type: ignore[attr-defined]
    return lambda turn, inputs: turn % 2


def _shrunk(parts: list[Tensor], step: Any) -> tuple[Tensor, Tensor]:
    """H by the step's `shrinkage`, and the sum of the parts itself."""
    measured = sum(parts[1:], parts[0])
    share = getattr(step, "shrinkage", 0)
    share = found_share(parts) if share == "auto" else share
    return (shrunk(measured.clone(), share) if share else measured), measured


def _group_of(
    weights: dict[str, Tensor],
    inputs: Inputs,
    method: Method,
    step_of: Callable[[str], Any],
) -> Iterator[Layer]:
    """The layers of these weights, which share their inputs, with what is computed once for all of them."""
    targets: list[Tensor | None] = [None] * len(weights)
    if weights and inputs.H is not None and inputs.drift is not None:
        stacked = corrected(torch.cat([*weights.values()]), inputs.H, inputs.drift, inputs.tokens)
        targets = list(stacked.split([len(weight) for weight in weights.values()]))
    shared = None
    for (name, weight), target in zip(weights.items(), targets, strict=True):
        step = step_of(name)
        layer = Layer(name, weight, step, inputs.H, target, None, shared, *inputs[3:])
        if shared is None and inputs.H is not None:
            layer = with_shared(method, layer)
            shared = layer.shared
        yield layer
