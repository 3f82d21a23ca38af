"""Magnitude: prune the weights of least |w|."""

import torch
from torch import Tensor

from kerf.calibration.layer import Layer
from kerf.tensors import masks


def prune_layer(layer: Layer) -> tuple[Tensor, str]:
    """The weight with its smallest entries 0, over the whole layer or N of every M; and no note."""
    scores = masks.magnitude(layer.weight)
    mask = masks.of_layer(scores, layer.step.sparsity, layer.step.nm_pattern())
    return layer.weight.masked_fill(~mask, 0), ""


def together(weights: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Weights by name with the smallest entries of all of them 0, by one threshold."""
    scores = torch.cat([masks.magnitude(weight).flatten() for weight in weights.values()])
    mask = masks.lowest_of_all(scores[None], sparsity)[0]
    by_weight = mask.split([weight.numel() for weight in weights.values()])
    return {
        name: weight.masked_fill(~kept.view_as(weight), 0)
        for (name, weight), kept in zip(weights.items(), by_weight, strict=True)
    }
