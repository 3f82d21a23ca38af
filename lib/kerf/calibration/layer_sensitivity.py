"""What a layer costs when it alone is compressed, measured on held-out calibration text."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from kerf.calibration import activations, heldout
from kerf.calibration.candidate import StepContext
from kerf.config import Calibration
from kerf.models import registry

Variants = Callable[[str, Any, Tensor | None], Iterator[tuple[Tensor, int]]]


def second_moments(context: StepContext, opened: Any) -> dict[str, Tensor]:
    """Second moments of the input of every layer, by name, in the model that the step starts from; opened: that model."""
    if not context.source:
        return activations.second_moments(activations.calibrate(context.model, context.calibration))
    groups = activations.collect(registry.network(opened), context.batches(opened))
    return {name: group.second / group.tokens for group in groups for name in group.names}


def cost_per_layer(
    opened: Any,
    names: list[str],
    variants: Variants,
    calibration: Calibration,
    second_moments: dict[str, Tensor],
) -> dict:
    """Costs and sizes (layers, variants) of every layer, each variant put into `opened` alone, and how many texts were held out.

    Costs are 1 - mean cosine, of a language model the mean KL divergence. variants(name, layer, second): yields the weight and the size of each
    variant; second: second moments of the layer's input, None where no calibration text reached it.
    """
    text = heldout.held(opened, calibration)
    table: dict[str, Any] = {"held": text.count, "costs": [], "bytes": []}
    for name in names:
        layer = registry.network(opened).get_submodule(name)
        original, costs, sizes = layer.weight.data, [], []
        second = second_moments.get(name)
        on_device = None if second is None else second.to(original.device)
        for weight, size in variants(name, layer, on_device):
            layer.weight.data = weight
            costs.append(text.loss(name))
            sizes.append(size)
            layer.weight.data = original
        table["costs"].append(costs)
        table["bytes"].append(sizes)
    return table
