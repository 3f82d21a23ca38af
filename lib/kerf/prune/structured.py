"""Feed-forward neurons or attention heads removed: smaller matrices, which any machine computes faster.

A unit is a set S of columns of the linear layer that narrows a block again (or mixes its heads), with the rows of the layers
before it that feed them: one neuron, or the query heads that share a key and a value. Removing the columns S of W (rows,
columns) costs tr(W_S (Hinv_SS)^-1 W_S^T) when the other columns compensate by least squares:

    W -= W_S (Hinv_SS)^-1 Hinv_S,    Hinv -= Hinv_S^T (Hinv_SS)^-1 Hinv_S

(optimal brain surgeon, Hassibi and Stork 1993, over whole columns as in ZipLM, arXiv:2302.04089). Units are removed one at a
time, the cheapest first, so the final weight is the least-squares answer. With saliency "activation" they are ordered by their
mean squared contribution to the output instead. A bias is one more column whose input is always 1; it is never removed, and
absorbs the mean of what was.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kerf.calibration.hessian import corrected, damped, moments
from kerf.calibration.layer import Calibrated
from kerf.calibration.sequential import layer_inputs
from kerf.config.prune import UNITS
from kerf.models import architecture
from kerf.prune.layers import PrunedLayer

DAMPING = 0.01  # share of the mean of the diagonal of H that is added to it: whole units need less than single weights
MULTIPLE = 32  # of neurons that stay: vector units and group sizes divide by it


def left(units: int, sparsity: float) -> int:
    """Number of units that stay, rounded to a multiple of MULTIPLE where there are many."""
    exact = units * (1 - sparsity)
    return min(units, MULTIPLE * round(exact / MULTIPLE)) if units > 2 * MULTIPLE else round(exact)


def obs_prune(
    W: Tensor, H: Tensor, keep: int, fixed: int = 0, size: int = 1, saliency: str = "second-order"
) -> tuple[Tensor, Tensor]:
    """Which units stay, ascending, and the weight (rows, columns) with 0 in the columns of the others.

    W: (rows, columns); H: (columns, columns) second moments; size: neighbouring columns of a unit; the last `fixed` columns
    are in none. saliency: "second-order", the cost of removing a unit, or "activation", its mean squared contribution to the output.
    """
    W, inverse = W.double().clone(), torch.linalg.inv(damped(H, DAMPING).double())
    units = (len(H) - fixed) // size
    contribution = _contributions(W, H, units, size) if saliency == "activation" else None
    stays = torch.ones(units, dtype=torch.bool, device=W.device)
    eye = torch.eye(size, dtype=torch.double, device=W.device)
    for _ in range(units - keep):
        cost = _costs(W, inverse, units, size) if contribution is None else contribution
        unit = int(cost.masked_fill(~stays, torch.inf).argmin())
        columns = slice(unit * size, (unit + 1) * size)
        rows = inverse[columns].clone()
        gain = torch.linalg.solve(rows[:, columns], rows)
        W.addmm_(W[:, columns].clone(), gain, alpha=-1)
        inverse.addmm_(rows.T, gain, alpha=-1)
        stays[unit] = False
        inverse[columns], inverse[:, columns], inverse[columns, columns] = 0, 0, eye
        W[:, columns] = 0
    return stays.nonzero()[:, 0], W.float()


def _blocks(matrix: Tensor, units: int, size: int) -> Tensor:
    """The square blocks of each unit on the diagonal, (units, size, size)."""
    starts = range(0, units * size, size)
    return torch.stack([matrix[at : at + size, at : at + size] for at in starts])


def _contributions(W: Tensor, H: Tensor, units: int, size: int) -> Tensor:
    """Mean square of each unit's contribution to the output, (units,)."""
    parts = W[:, : units * size].T.reshape(units, size, -1)
    return (parts * (_blocks(H.double(), units, size) @ parts)).sum((1, 2))


def _costs(W: Tensor, inverse: Tensor, units: int, size: int) -> Tensor:
    """The cost of removing each unit, (units,)."""
    if size == 1:
        return W[:, :units].square().sum(0) / inverse.diagonal()[:units]
    parts = W[:, : units * size].T.reshape(units, size, -1)
    solved = torch.linalg.solve(_blocks(inverse, units, size), parts)
    return (parts * solved).sum((1, 2))


@torch.no_grad()
def prune_network(text: Calibrated, step: Any) -> Iterator[PrunedLayer]:
    """Remove neurons or heads from every block of `text.net`, in place; shapes change once all layers were yielded.

    Blocks go in the order they run; each compensates for the changes of those before it. A layer that loses columns is yielded
    with its weight, zeros in the removed columns; the layers that feed it, which lose rows, without one.
    """
    net, feeding, staying = text.net, units(text.net, step.method), {}
    walks = (
        layer_inputs(each, text.groups, text.batches, rounded=True)
        for each in (net, text.reference)
    )
    for (names, inputs), (_, originals) in zip(*walks, strict=True):
        for name in (name for name in names if name in feeding):
            total = count(net, feeding[name])
            keep = left(total, step.sparsity)
            layer: Any = net.get_submodule(name)
            stay = _prune_columns(layer, inputs, originals, total, keep, step.saliency)
            staying[name] = stay
            sparsity = 1 - len(stay) / total
            yield PrunedLayer(name, layer.weight.data, "", sparsity)
            yield from (PrunedLayer(into, None, "", sparsity) for into in feeding[name])
    _shrink(net, step.method, feeding, staying)


def _prune_columns(
    layer: Any, inputs: Iterator, originals: Iterator, total: int, keep: int, saliency: str
) -> Tensor:
    """Set the columns of all but `keep` of `total` units to 0, and compensate with the others; returns the units that stay.

    inputs, originals: batches of the layer's inputs (tokens, columns) in the pruned and in the unchanged network.
    """
    columns, biased = layer.weight.shape[1], layer.bias is not None
    H, drift, tokens = moments(_with_ones(inputs, biased), _with_ones(originals, biased))
    weight = layer.weight.data
    if biased:
        weight = torch.cat([weight, layer.bias.data[:, None]], 1)
    target = corrected(weight, H, drift, tokens)
    stay, pruned = obs_prune(target, H, keep, int(biased), columns // total, saliency)
    layer.weight.data = pruned[:, :columns].contiguous()
    if biased:
        layer.bias.data = pruned[:, -1].contiguous()
    return stay


def _shrink(
    net: Any, method: str, feeding: dict[str, dict[str, int]], staying: dict[str, Tensor]
) -> None:
    """Remove all units but those in `staying` from their layers, and update the network's configuration."""
    for name, stay in staying.items():
        layer = net.get_submodule(name)
        size = layer.in_features // count(net, feeding[name])
        _narrow(layer, None, _members(stay, size))
        for into, rows in feeding[name].items():
            _narrow(net.get_submodule(into), _members(stay, rows), None)
    for key, value in _config(net, method, len(next(iter(staying.values())))).items():
        setattr(net.config, key, value)


def shrunk(net: Any, steps: list[dict]) -> Any:
    """Shrink `net` to the shapes that `steps` will produce, keeping the first units (for checking shapes only)."""
    pruning = [step["prune"] for step in steps if step.get("prune", {}).get("method") in UNITS]
    for step in pruning:
        feeding = units(net, step["method"])
        staying = {
            name: torch.arange(left(count(net, rows), step["sparsity"]))
            for name, rows in feeding.items()
        }
        _shrink(net, step["method"], feeding, staying)
    return net


def units(net: torch.nn.Module, method: str) -> dict[str, dict[str, int]]:
    """Layers that lose columns, each with the layers that feed it and how many rows a unit has there.

    Raises InputError for a network that is not understood.
    """
    return {"neurons": architecture.neurons, "heads": architecture.heads}[method](net)


def count(net: Any, rows: dict[str, int]) -> int:
    """Number of units; rows: of one unit, by layer."""
    into, size = next(iter(rows.items()))
    return net.get_submodule(into).out_features // size


def _members(stay: Tensor, size: int) -> Tensor:
    """Rows or columns of the units that stay."""
    return (stay[:, None] * size + torch.arange(size, device=stay.device)).flatten()


def _config(net: Any, method: str, stay: int) -> dict[str, int]:
    """The keys of the network's configuration with `stay` units."""
    if method == "neurons":
        return {"intermediate_size": stay}
    shared = net.config.num_attention_heads // net.config.num_key_value_heads
    return {
        "num_attention_heads": stay * shared,
        "num_key_value_heads": stay,
        "head_dim": architecture.head_dim(net),
    }


def _with_ones(inputs: Iterator, biased: bool) -> Iterator[Tensor]:
    for X in inputs:
        yield torch.cat([X, X.new_ones(len(X), 1)], 1) if biased else X


def _narrow(layer: Any, rows: Tensor | None, columns: Tensor | None) -> None:
    weight = layer.weight.data
    weight = weight if rows is None else weight[rows]
    layer.weight.data = (weight if columns is None else weight[:, columns]).contiguous()
    if rows is not None and layer.bias is not None:
        layer.bias.data = layer.bias.data[rows].contiguous()
    layer.out_features, layer.in_features = layer.weight.shape
