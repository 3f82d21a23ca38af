"""Layers by themselves: the keys of a `prune` step, turned into calls of the methods; weights change in place."""

from collections.abc import Iterator

import torch

from kerf.calibration.offload import park
from kerf.tensors import masks
from kerf.prune.sparsegpt import coordinate_descent, sparsegpt
from kerf.calibration.hessian import moments
from kerf.calibration.hessian import corrected, inverse_factor
from kerf.config import Prune


def by_magnitude(layers: dict, step: Prune, shares: dict[str, float] | None = None) -> Iterator[tuple[str, torch.Tensor, str]]:
    """Prune by |w|: each layer for itself, or with scope `global` all of them by one threshold. shares: see `prune_group`."""
    scores = {name: masks.magnitude(layer.weight.data) for name, layer in layers.items()}
    if step.scope == "global" and scores:
        together = masks.lowest_of_all(torch.cat([each.flatten() for each in scores.values()])[None], step.sparsity)[0]
        kept = dict(zip(scores, together.split([each.numel() for each in scores.values()]), strict=True))
    else:
        kept = {name: _mask(each, at(step, name, shares), of_rows=False) for name, each in scores.items()}
    for name, layer in layers.items():
        yield name, _set(layer, layer.weight.data.masked_fill(~kept[name].view_as(layer.weight), 0)), ""


def at(step: Prune, name: str, shares: dict[str, float] | None) -> Prune:
    """The step as it is for a layer."""
    return step.model_copy(update={"sparsity": shares[name]}) if shares else step


def prune_group(layers: dict, inputs: list, step: Prune, shares: dict[str, float] | None = None) -> Iterator[tuple[str, torch.Tensor, str]]:
    """Prune layers that share an input. inputs: of the net, and of the one as it was beside it; shares: sparsity of
    each layer, where they differ."""
    H, drift, tokens = moments(*inputs)
    R, _ = inverse_factor(H) if step.method == "sparsegpt" else (None, 0.0)
    weights = [layer.weight.data.float() for layer in layers.values()]
    targets = weights if drift is None else corrected(torch.cat(weights), H, drift, tokens).split([len(weight) for weight in weights])
    for (name, layer), weight, target in zip(layers.items(), weights, targets, strict=True):
        found, note = _pruned(weight, target, H, R, at(step, name, shares))
        yield name, _set(layer, found), note


def alone_pruned(weight: torch.Tensor, second: torch.Tensor | None, step: Prune, levels: tuple[float, ...]) -> Iterator[torch.Tensor]:
    """A weight by itself at every level of sparsity, as the step's method would prune it; second: moments of its input."""
    weight = weight.float()
    informed = second is not None and step.method != "magnitude"
    R = inverse_factor(second)[0] if informed and step.method == "sparsegpt" else None
    for level in levels:
        here = step.model_copy(update={"sparsity": level})
        if not level:
            yield weight
        elif informed:
            yield _pruned(weight, weight, second, R, here)[0]
        else:
            yield weight.masked_fill(~_mask(masks.magnitude(weight), here, of_rows=False), 0)


def _pruned(weight, target, H, R, step: Prune) -> tuple[torch.Tensor, str]:
    """A weight by SparseGPT towards `target`, or where there is no factor R or it overflows by Wanda; and a note."""
    found = None if R is None else sparsegpt(target, H, R, step.sparsity, step.nm_pattern(), step.sweeps)
    if found is not None:
        return found, ""
    kept = _mask(masks.wanda(weight, H.diagonal()), step, of_rows=True)
    found = weight.masked_fill(~kept, 0)
    if step.method == "wanda" and step.sweeps:
        coordinate_descent(found, weight, H, kept, step.sweeps)
    return found, "sparsegpt gave no finite weights: pruned by wanda" if step.method == "sparsegpt" else ""


def _mask(scores, step: Prune, of_rows: bool) -> torch.Tensor:
    if of_rows and not step.pattern:
        return masks.lowest(scores, step.sparsity)
    return masks.of_layer(scores, step.sparsity, step.nm_pattern())


def _set(layer, weight) -> torch.Tensor:
    layer.weight.data = park(weight.to(layer.weight.dtype).contiguous())
    return layer.weight.data
