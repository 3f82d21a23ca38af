"""A network quantized layer by layer in the order the layers run, each calibrated on what the layers before it became."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kerf.calibration.layer import Calibrated, Layer, noted, sequential_layers, with_shared
from kerf.calibration.offload import park
from kerf.config.methods import METHODS
from kerf.core.registry import resolved
from kerf.models import architecture
from kerf.quantize.rounding import grid_options, named, nearest, rtn
from kerf.tensors.quantized import Quantized


class QuantizedLayer(NamedTuple):
    """A layer of the result; second: the second moments of its input that were used, None without calibration text."""

    name: str
    quantized: Quantized
    note: str
    second: Tensor | None


def compress(
    text: Calibrated,
    step: Any,
    second_moments: dict[str, Tensor],
    bits: dict[str, float] | None = None,
    sparse: bool = False,
) -> Iterator[QuantizedLayer]:
    """Quantize the layers of `text.net` in place and yield each of them; layers that share one tensor are quantized once.

    step: the parameters of a `quantize` step. second_moments: of the inputs in the float model, by layer; sequential methods
    compute their own. bits: width of each layer where widths are mixed. sparse: the network was pruned, and zeros stay zero.
    """
    embeddings, layers = architecture.embeddings(text.net), text.layers
    method, modules = METHODS[step.method], {**embeddings, **layers}
    uses = Counter(id(module.weight) for module in modules.values())
    finished: dict[int, Quantized | None] = {}  # by weight; kept only where another layer shares it
    sequential = method.calibration == "sequential"

    def step_of(name: str) -> Any:
        return step.model_copy(update={"bits": bits[name], "embeddings": "same"}) if bits else step

    def masked(layer: Layer) -> Layer:
        return replace(layer, mask=layer.weight != 0) if sparse else layer

    def finish(name: str, quantized: Quantized, note: str, second: Any = None) -> QuantizedLayer:
        weight = modules[name].weight
        finished[id(weight)] = quantized if uses[id(weight)] > 1 else None
        weight.data = park(quantized.dequantize())
        return QuantizedLayer(name, quantized, note, second)

    for name, module in embeddings.items():
        if step_of(name).embedding_bits() < 32:
            yield finish(name, embedding(name, module, step_of(name)), "")
    reached = set()
    if sequential:
        skip = lambda name: id(layers[name].weight) in finished  # noqa: E731
        for layer in sequential_layers(text, method, step_of, skip):
            reached.add(layer.name)
            if layer.H is None:
                quantized, note = nearest(masked(layer))[0], "too few: rounded to nearest"
            else:
                quantized, note = resolved(method.layer)(masked(layer))
            yield finish(layer.name, quantized, noted(layer.about, note), layer.measured)
    for name in (name for name in layers if name not in reached):
        weight, second = layers[name].weight, second_moments.get(name)
        if shared := finished.get(id(weight)):
            yield finish(name, shared, "the same tensor as another layer's", second)
            continue
        second = usable(second, weight)
        layer = masked(Layer(name, weight.data, step_of(name), second))
        if sequential:
            quantized, note = (
                nearest(layer)[0],
                "no calibration text reached it: rounded to nearest",
            )
        else:
            quantized, note = resolved(method.layer)(layer)
        yield finish(name, quantized, note, second)


def usable(second: Tensor | None, weight: Tensor) -> Tensor | None:
    """Second moments on the weight's device; None where the layer has another number of columns than when they were collected."""
    if second is None or len(second) != weight.shape[1]:
        return None
    return second.to(weight.device)


def one_layer(
    name: str, module: Any, step: Any, second: Tensor | None = None, mask: Tensor | None = None
) -> Quantized:
    """A single layer as the step's method quantizes it, the rest of the network unchanged.

    second: second moments of its input, None for embeddings or without calibration text; mask: of a pruned weight.
    """
    if isinstance(module, torch.nn.Embedding):
        return embedding(name, module, step)
    method, layer = METHODS[step.method], Layer(name, module.weight.data, step, second, mask=mask)
    if second is None and method.calibration == "sequential":
        return nearest(layer)[0]
    return resolved(method.layer)(layer if second is None else with_shared(method, layer))[0]


def embedding(name: str, module: Any, step: Any) -> Quantized:
    """Word embeddings with one scale per row, whatever the granularity of linear layers: a lookup has no input moments."""
    columns = module.weight.shape[1]
    grid = {"bits": step.embedding_bits(), "per_tensor": False, "group_size": columns}
    return named(name, rtn, module.weight.data, **grid_options(step, columns) | grid)
