"""What a layer costs, with it alone cut in some way and everything else as it was, on calibration text that was held back."""

from collections.abc import Callable
from pathlib import Path

from kerf.calibration import activations, heldout
from kerf.config import Calibration
from kerf.models import families, registry


def second_moments(
    opened, model: str, source: str | Path, calibration: Calibration
) -> dict[str, object]:
    """Second moments of the input of every layer, by its name, in the float model or in a candidate that was opened."""
    if not source:
        return activations.second_moments(activations.calibrate(model, calibration))
    groups = activations.collect(
        registry.network(opened), families.of_opened(opened).batches(opened, calibration)
    )
    return {name: group.second / group.tokens for group in groups for name in group.names}


def cost_per_layer(
    opened, names: list[str], cuts: Callable, calibration: Calibration, second: dict
) -> dict:
    """costs and bytes of every layer, each cut alone in every way, and how many texts were held back for the costs:
    1 - mean cosine, of a language model mean KL divergence.

    cuts(name, layer, second): yields the weight and the size of each way; second: moments of the layer's input, by
    name in `second`, None where no calibration text reached it.
    """
    text, table = heldout.held(opened, calibration), {"costs": [], "bytes": []}
    for name in names:
        layer = registry.network(opened).get_submodule(name)
        before, found = layer.weight.data, []
        for weight, size in cuts(name, layer, second.get(name)):
            layer.weight.data = weight
            found.append((text.lost(name), size))
            layer.weight.data = before
        table["costs"].append([cost for cost, _ in found])
        table["bytes"].append([size for _, size in found])
    return {"held": text.count, **table}
