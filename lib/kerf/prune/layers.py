"""Layers by themselves: the keys of a `prune` step, turned into calls of the methods; weights change in place."""

from collections.abc import Iterator

import torch

from kerf.parking import park
from kerf.prune import masks
from kerf.prune.sparsegpt import settle, sparsegpt
from kerf.quantize.compress import moments
from kerf.quantize.gptq import corrected, inverse_factor
from kerf.steps import Prune


def by_magnitude(layers: dict, step: Prune) -> Iterator[tuple[str, torch.Tensor, str]]:
    """Prune by |w|: each layer for itself, or with scope `global` all of them by one threshold."""
    scores = {name: masks.magnitude(layer.weight.data) for name, layer in layers.items()}
    if step.scope == "global" and scores:
        together = masks.lowest_of_all(torch.cat([each.flatten() for each in scores.values()])[None], step.sparsity)[0]
        kept = dict(zip(scores, together.split([each.numel() for each in scores.values()]), strict=True))
    else:
        kept = {name: _mask(each, step, of_rows=False) for name, each in scores.items()}
    for name, layer in layers.items():
        yield name, _set(layer, layer.weight.data.masked_fill(~kept[name].view_as(layer.weight), 0)), ""


def prune_group(layers: dict, inputs: list, step: Prune) -> Iterator[tuple[str, torch.Tensor, str]]:
    """Prune layers that share an input. inputs: of the net, and of the one as it was beside it."""
    H, drift = moments(*inputs)
    R, _ = inverse_factor(H) if step.method == "sparsegpt" else (None, 0.0)
    for name, layer in layers.items():
        weight = layer.weight.data.float()
        target = weight if drift is None else corrected(weight, H, drift)
        found = None
        if R is not None:
            found = sparsegpt(target, H, R, step.sparsity, step.neighbours(), step.sweeps)
        note = "sparsegpt gave no finite weights: pruned by wanda" if step.method == "sparsegpt" and found is None else ""
        if found is None:
            kept = _mask(masks.wanda(weight, H.diagonal()), step, of_rows=True)
            found = weight.masked_fill(~kept, 0)
            if step.method == "wanda" and step.sweeps:
                settle(found, weight, H, kept, step.sweeps)
        yield name, _set(layer, found), note


def _mask(scores, step: Prune, of_rows: bool) -> torch.Tensor:
    if of_rows and not step.pattern:
        return masks.lowest(scores, step.sparsity)
    return masks.of_layer(scores, step.sparsity, step.neighbours())


def _set(layer, weight) -> torch.Tensor:
    layer.weight.data = park(weight.to(layer.weight.dtype).contiguous())
    return layer.weight.data
