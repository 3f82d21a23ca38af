"""Magnitude: the weights of least |w| go."""

import torch

from kerf.calibration.layer import Layer
from kerf.tensors import masks


def layer(given: Layer) -> tuple[torch.Tensor, str]:
    """The weight with its smallest entries 0, over the whole layer or N of every M; and no note."""
    kept = masks.of_layer(
        masks.magnitude(given.weight), given.step.sparsity, given.step.nm_pattern()
    )
    return given.weight.masked_fill(~kept, 0), ""


def together(weights: dict[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Weights by name with the smallest of all of them 0, by one threshold."""
    scores = [masks.magnitude(weight).flatten() for weight in weights.values()]
    kept = masks.lowest_of_all(torch.cat(scores)[None], sparsity)[0].split(
        [len(each) for each in scores]
    )
    return {
        name: weight.masked_fill(~mask.view_as(weight), 0)
        for (name, weight), mask in zip(weights.items(), kept, strict=True)
    }
