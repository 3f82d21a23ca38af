"""Feed-forward neurons or attention heads removed for real: smaller matrices, which any machine computes faster.

A unit is a set S of columns of the linear that narrows a block again (or mixes its heads), with the rows of
the linears before it that feed them: one neuron, or the query heads that share a key and a value. Removing
the columns S of W (rows, columns) costs tr(W_S (Hinv_SS)^-1 W_S^T) when what is kept makes up for it by least
squares, which changes the other columns by

    W -= W_S (Hinv_SS)^-1 Hinv_S,    Hinv -= Hinv_S^T (Hinv_SS)^-1 Hinv_S

(optimal brain surgeon, Hassibi and Stork 1993, over whole columns as in ZipLM, arXiv:2302.04089). They go
one at a time, the cheapest first, so what is left at the end is the least-squares answer. With saliency
"activation" they go by the mean square of what they add to the output, whatever could make up for it. A bias
is one more column whose input is always 1; it never goes, and takes up the mean of what did.
"""

from collections.abc import Iterator

import torch

from kerf.calibration.hessian import corrected, damped, moments
from kerf.calibration.sequential import layer_inputs
from kerf.config.prune import UNITS, Prune
from kerf.models import architecture

DAMPING = 0.01  # share of the mean of the diagonal of H that is added to it: whole units ask for less than single weights
MULTIPLE = 32  # of neurons that stay: vector units and group sizes like it


def left(units: int, sparsity: float) -> int:
    """How many of so many units stay: of many the nearest multiple of MULTIPLE."""
    exact = units * (1 - sparsity)
    return min(units, MULTIPLE * round(exact / MULTIPLE)) if units > 2 * MULTIPLE else round(exact)


def obs_prune(
    W: torch.Tensor,
    H: torch.Tensor,
    keep: int,
    fixed: int = 0,
    size: int = 1,
    saliency: str = "second-order",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which units stay, ascending, and the weight (rows, columns) with 0 in the columns of the others.

    W: (rows, columns); H: (columns, columns) second moments; size: neighbouring columns of a unit; the last
    `fixed` columns are in none. saliency: what removing a unit costs, or how much it says ("activation").
    """
    W, inverse = W.double().clone(), torch.linalg.inv(damped(H, DAMPING).double())
    units = (len(H) - fixed) // size
    said = _said(W, H, units, size) if saliency == "activation" else None
    here = torch.ones(units, dtype=torch.bool)
    eye = torch.eye(size, dtype=torch.double)
    for _ in range(units - keep):
        cost = _costs(W, inverse, units, size) if said is None else said
        cost[~here] = torch.inf
        unit = int(cost.argmin())
        columns = slice(unit * size, (unit + 1) * size)
        rows = inverse[columns].clone()
        gain = torch.linalg.solve(rows[:, columns], rows)
        W.addmm_(W[:, columns].clone(), gain, alpha=-1)
        inverse.addmm_(rows.T, gain, alpha=-1)
        here[unit] = False
        inverse[columns], inverse[:, columns], inverse[columns, columns] = 0, 0, eye
        W[:, columns] = 0
    return here.nonzero()[:, 0], W.float()


def _said(W, H, units: int, size: int) -> torch.Tensor:
    """Mean square of what each unit adds to the output, (units,)."""
    columns = slice(0, units * size)
    parts = W[:, columns].T.reshape(units, size, -1)
    here = torch.stack(
        [
            H[place : place + size, place : place + size].double()
            for place in range(0, units * size, size)
        ]
    )
    return (parts * (here @ parts)).sum((1, 2))


def _costs(W, inverse, units: int, size: int) -> torch.Tensor:
    """What removing each unit costs, (units,)."""
    if size == 1:
        return W[:, :units].square().sum(0) / inverse.diagonal()[:units]
    blocks = torch.stack(
        [
            inverse[place : place + size, place : place + size]
            for place in range(0, units * size, size)
        ]
    )
    parts = W[:, : units * size].T.reshape(units, size, -1)
    return (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))


@torch.no_grad()
def remove(
    net, reference, step: Prune, groups, batches
) -> Iterator[tuple[str, float, torch.Tensor]]:
    """Take neurons or heads out of every block of `net`, in place; yields the name of each layer that loses columns,
    the share of them that goes, and its weight with 0 in those.

    Blocks go in the order they run; each compensates for the changes of those before it. Shapes change at the end.
    """
    found, kept = units(net, step.method), {}
    for (names, inputs), (_, originals) in zip(
        *(layer_inputs(each, groups, batches, rounded=True) for each in (net, reference)),
        strict=True,
    ):
        for name in (name for name in names if name in found):
            layer = net.get_submodule(name)
            biased, columns = layer.bias is not None, layer.weight.shape[1]
            there = count(net, found[name])
            H, drift, tokens = moments(_with_ones(inputs, biased), _with_ones(originals, biased))
            whole = (
                torch.cat([layer.weight.data, layer.bias.data[:, None]], 1)
                if biased
                else layer.weight.data
            )
            stay, cut = obs_prune(
                corrected(whole, H, drift, tokens),
                H,
                left(there, step.sparsity),
                int(biased),
                columns // there,
                step.saliency,
            )
            layer.weight.data = cut[:, :columns].contiguous()
            if biased:
                layer.bias.data = cut[:, -1].contiguous()
            kept[name] = stay
            yield name, 1 - len(stay) / there, layer.weight.data
    _shrink(net, step.method, found, kept)


def _shrink(
    net, method: str, found: dict[str, dict[str, int]], kept: dict[str, torch.Tensor]
) -> None:
    """Leave the units `kept` alone in the layers that `units` found, and say so in the configuration."""
    for name, stay in kept.items():
        there = count(net, found[name])
        _narrow(
            net.get_submodule(name),
            None,
            _members(stay, net.get_submodule(name).in_features // there),
        )
        for into, size in found[name].items():
            _narrow(net.get_submodule(into), _members(stay, size), None)
    for key, value in _config(net, method, len(next(iter(kept.values())))).items():
        setattr(net.config, key, value)


def shrunk(net, steps: list[dict]):
    """Shrink `net` to the shapes that `steps` will produce, keeping the first units (for checking shapes only)."""
    for step in (each["prune"] for each in steps if each.get("prune", {}).get("method") in UNITS):
        found = units(net, step["method"])
        kept = {
            name: torch.arange(left(count(net, rows), step["sparsity"]))
            for name, rows in found.items()
        }
        _shrink(net, step["method"], found, kept)
    return net


def units(net, method: str) -> dict[str, dict[str, int]]:
    """Layers that lose columns, with those before them that lose rows, and how many rows a unit has there.

    Raises InputError for a network that is not understood.
    """
    return {"neurons": architecture.neurons, "heads": architecture.heads}[method](net)


def count(net, rows: dict[str, int]) -> int:
    """How many units there are; rows: of a unit, by layer."""
    into, size = next(iter(rows.items()))
    return net.get_submodule(into).out_features // size


def _members(stay: torch.Tensor, size: int) -> torch.Tensor:
    """Rows or columns of the units that stay."""
    return (stay[:, None] * size + torch.arange(size)).flatten()


def _config(net, method: str, stay: int) -> dict[str, int]:
    """What the network's configuration says of so many units."""
    if method == "neurons":
        return {"intermediate_size": stay}
    shared = net.config.num_attention_heads // net.config.num_key_value_heads
    return {
        "num_attention_heads": stay * shared,
        "num_key_value_heads": stay,
        "head_dim": architecture.head_dim(net),
    }


def _with_ones(inputs, biased: bool) -> Iterator[torch.Tensor]:
    for X in inputs:
        yield torch.cat([X, torch.ones(len(X), 1)], 1) if biased else X


def _narrow(layer, rows, columns) -> None:
    weight = layer.weight.data if rows is None else layer.weight.data[rows]
    layer.weight.data = (weight if columns is None else weight[:, columns]).contiguous()
    if rows is not None and layer.bias is not None:
        layer.bias.data = layer.bias.data[rows].contiguous()
    layer.out_features, layer.in_features = layer.weight.shape
