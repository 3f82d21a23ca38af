"""A network, layer by layer in the order they run, each calibrated on what the layers before it became."""

from collections.abc import Iterator

import torch

from kerf.calibration.hessian import corrected, moments
from kerf.calibration.layer import Layer
from kerf.calibration.offload import park
from kerf.calibration.sequential import layer_inputs
from kerf.config.methods import METHODS
from kerf.config.quantize import Quantize
from kerf.core.registry import resolved
from kerf.models import architecture
from kerf.quantize.layers import embedding
from kerf.quantize.rounding import nearest


def compress(
    net,
    reference,
    step: Quantize,
    groups,
    statistics,
    batches,
    assignment: dict[str, float] | None = None,
    sparse=False,
) -> Iterator[tuple[str, object, str, torch.Tensor | None]]:
    """Quantize the layers of `net` in place, and yield each: name, Quantized, a note on what was special, and the
    second moments of the inputs that were looked at, if any were.

    reference: the same network, left as it is; groups: from `activations.groups_of`; statistics: by name, what
    `activations.second_moments` gives (sequential methods make their own, of the network as it becomes);
    assignment: layer -> bits, where they are mixed; sparse: the network was pruned, and what is 0 stays 0.
    Layers that are one tensor (tied) are quantized once.
    """
    done: dict[int, object] = {}
    shared = _tied(net)
    for name, quantized, note, second in _each(
        net, reference, step, groups, statistics, batches, done, assignment or {}, sparse
    ):
        weight = net.get_submodule(name).weight
        done[id(weight)] = (
            quantized if id(weight) in shared else None
        )  # kept only where it is needed again
        weight.data = park(quantized.dequantize())
        yield name, quantized, note, second


def _each(net, reference, step, groups, statistics, batches, done, assignment, sparse):
    def at(name):
        return (
            step.model_copy(update={"bits": assignment[name], "embeddings": "same"})
            if assignment
            else step
        )

    layers, seen = architecture.linears(net), set()
    for name, layer in architecture.embeddings(net).items():
        if at(name).embedding_bits() < 32:
            yield name, embedding(name, layer, at(name)), "", None
    method = METHODS[step.method]
    if method.calibration == "sequential":
        networks = (net, reference) if getattr(step, "asymmetric_calibration", False) else (net,)
        for stops in zip(
            *(layer_inputs(each, groups, batches, rounded=True) for each in networks), strict=True
        ):
            names = [name for name in stops[0][0] if id(layers[name].weight) not in done]
            seen.update(names)
            if names:
                yield from _group(
                    method,
                    {name: layers[name] for name in names},
                    [inputs for _, inputs in stops],
                    at,
                    sparse,
                )
    for name in (name for name in layers if name not in seen):
        second = statistics.get(name)
        if id(layers[name].weight) in done:
            yield name, done[id(layers[name].weight)], "the same tensor as another layer's", second
        else:
            second = (
                second
                if second is not None and len(second) == layers[name].weight.shape[1]
                else None
            )
            note = (
                "no calibration text reached it: rounded to nearest"
                if method.calibration == "sequential"
                else ""
            )
            quantize = nearest if note else resolved(method.layer)
            mask = _mask(layers[name].weight.data, sparse)
            given = Layer(name, layers[name].weight.data, at(name), second, mask=mask)
            quantized, said = quantize(given)
            yield name, quantized, note or said, second


def _tied(net) -> set[int]:
    """Ids of weights that several layers have."""
    every = [
        id(layer.weight)
        for layer in (*architecture.linears(net).values(), *architecture.embeddings(net).values())
    ]
    return {weight for weight in every if every.count(weight) > 1}


def _group(method, layers, inputs, at, sparse) -> Iterator[tuple[str, object, str, torch.Tensor]]:
    """Layers that share an input: one Hessian, one factor. inputs: of the net, and of the float one beside it.

    at(name): the step's parameters for a layer.
    """
    H, drift, tokens = moments(*inputs)
    targets = dict.fromkeys(layers)
    if drift is not None:
        stacked = corrected(
            torch.cat([layer.weight.data for layer in layers.values()]), H, drift, tokens
        )
        targets = dict(
            zip(
                layers, stacked.split([len(layer.weight) for layer in layers.values()]), strict=True
            )
        )
    shared = resolved(method.shared)(H, at(next(iter(layers)))) if method.shared else None
    for name, layer in layers.items():
        weight = layer.weight.data
        given = Layer(name, weight, at(name), H, targets[name], _mask(weight, sparse), shared)
        quantized, note = resolved(method.layer)(given)
        yield name, quantized, note, H


def _mask(weight, sparse: bool):
    return weight != 0 if sparse else None
