"""A network, layer by layer in the order they run, each calibrated on what the layers before it became."""

from collections.abc import Iterator

import torch

from kerf.models import architecture
from kerf.calibration.hessian import moments
from kerf.calibration.sequential import in_lockstep
from kerf.calibration.offload import park
from kerf.calibration.hessian import corrected
from kerf.quantize.layers import embedding, factor, gptq_layer, rtn_layer
from kerf.config import Quantize


def compress(
    net, reference, step: Quantize, groups, statistics, batches, assignment: dict[str, float] | None = None, sparse=False
) -> Iterator[tuple[str, object, str, torch.Tensor | None]]:
    """Quantize the layers of `net` in place, and yield each: name, Quantized, a note on what was special, and the
    second moments of the inputs that were looked at, if any were.

    reference: the same network, left as it is; groups: from `calibrate.groups_of`; statistics: by name, what
    `calibrate.second_moments` gives (gptq makes its own, of the network as it becomes);
    assignment: layer -> bits, where they are mixed; sparse: the network was pruned, and what is 0 stays 0.
    Layers that are one tensor (tied) are quantized once.
    """
    done: dict[int, object] = {}
    shared = _tied(net)
    for name, quantized, note, second in _each(net, reference, step, groups, statistics, batches, done, assignment or {}, sparse):
        weight = net.get_submodule(name).weight
        done[id(weight)] = quantized if id(weight) in shared else None  # kept only where it is needed again
        weight.data = park(quantized.dequantize())
        yield name, quantized, note, second


def _each(net, reference, step, groups, statistics, batches, done, assignment, sparse):
    def at(name):
        return step.model_copy(update={"bits": assignment[name], "embeddings": "same"}) if assignment else step

    layers, seen = architecture.linears(net), set()
    for name, layer in architecture.embeddings(net).items():
        if at(name).embedding_bits() < 32:
            yield name, embedding(name, layer, at(name)), "", None
    if step.method == "gptq":
        networks = (net, reference) if step.asymmetric_calibration else (net,)
        for stops in zip(*(in_lockstep(each, groups, batches, rounded=True) for each in networks), strict=True):
            names = [name for name in stops[0][0] if id(layers[name].weight) not in done]
            seen.update(names)
            if names:
                yield from _gptq_group(layers, names, [inputs for _, inputs in stops], at, sparse)
    for name in (name for name in layers if name not in seen):
        if id(layers[name].weight) in done:
            yield name, done[id(layers[name].weight)], "the same tensor as another layer's", statistics.get(name)
        else:
            second = statistics.get(name)
            second = second if second is not None and len(second) == layers[name].weight.shape[1] else None
            note = "no calibration text reached it: rounded to nearest" if step.method == "gptq" else ""
            importance = None if second is None else second.diagonal()
            yield name, rtn_layer(name, layers[name], at(name), importance, _kept(layers[name], sparse)), note, second


def _tied(net) -> set[int]:
    """Ids of weights that several layers have."""
    every = [id(layer.weight) for layer in (*architecture.linears(net).values(), *architecture.embeddings(net).values())]
    return {weight for weight in every if every.count(weight) > 1}


def _gptq_group(layers, names, inputs, at, sparse) -> Iterator[tuple[str, object, str, torch.Tensor]]:
    """Layers that share an input: one Hessian, one factor. inputs: of the net, and of the float one beside it.

    at(name): the step's parameters for a layer.
    """
    H, drift, tokens = moments(*inputs)
    weights = {name: layers[name].weight.data for name in names}
    if drift is not None:
        stacked = corrected(torch.cat(list(weights.values())), H, drift, tokens)
        weights = dict(zip(names, stacked.split([len(weight) for weight in weights.values()]), strict=True))
    order, factored = factor(H, at(names[0]))
    for name, weight in weights.items():
        kept = _kept(layers[name], sparse)
        result, note = gptq_layer(name, weight, H, order, factored, at(name), kept)
        yield name, result or rtn_layer(name, layers[name], at(name), H.diagonal(), kept), note, H


def _kept(layer, sparse: bool):
    return layer.weight.data != 0 if sparse else None


