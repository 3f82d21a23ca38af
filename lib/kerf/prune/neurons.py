"""Feed-forward neurons removed for real: smaller matrices, which any machine computes faster.

A neuron is a row of the linears that widen a block and a column of the one that narrows it again. Removing
column j of the latter, W (rows, neurons), costs |W[:, j]|^2 / Hinv[j, j] when what is kept makes up for it by
least squares, which changes the other columns by

    W -= W[:, j] Hinv[j, :] / Hinv[j, j],    Hinv -= Hinv[:, j] Hinv[j, :] / Hinv[j, j]

(optimal brain surgeon, Hassibi and Stork 1993, over whole columns as in ZipLM, arXiv:2302.04089). They go
one at a time, the cheapest first, so what is left at the end is the least-squares answer. A bias is one
more column whose input is always 1; it never goes, and takes up the mean of what did.
"""

from collections.abc import Iterator

import torch

from kerf import anatomy
from kerf.lockstep import in_lockstep
from kerf.quantize.compress import moments
from kerf.quantize.gptq import DAMPING, corrected, damped

MULTIPLE = 32  # of neurons that stay: vector units and group sizes like it


def left(neurons: int, sparsity: float) -> int:
    """How many of so many neurons stay: the nearest multiple of MULTIPLE, where there is one."""
    exact = neurons * (1 - sparsity)
    return max(1, min(neurons, MULTIPLE * round(exact / MULTIPLE))) if neurons > 2 * MULTIPLE else max(1, round(exact))


def surgery(W: torch.Tensor, H: torch.Tensor, keep: int, fixed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Which columns stay, ascending, and the weight (rows, columns) with 0 in the others.

    W: (rows, columns); H: (columns, columns) second moments; the last `fixed` columns never go.
    """
    W, inverse = W.double().clone(), torch.linalg.inv(damped(H, DAMPING).double())
    here = torch.ones(len(H), dtype=torch.bool)
    free = len(H) - fixed
    for _ in range(free - keep):
        cost = W.square().sum(0) / inverse.diagonal()
        cost[~here] = torch.inf
        cost[free:] = torch.inf
        j = int(cost.argmin())
        W.addmm_(W[:, j : j + 1].clone(), inverse[j : j + 1], alpha=-1 / float(inverse[j, j]))
        inverse.addmm_(inverse[:, j : j + 1].clone(), inverse[j : j + 1].clone(), alpha=-1 / float(inverse[j, j]))
        here[j] = False
        inverse[j], inverse[:, j], inverse[j, j] = 0, 0, 1
    W[:, ~here] = 0
    return here[:free].nonzero()[:, 0], W.float()


@torch.no_grad()
def remove(net, reference, sparsity: float, groups, batches) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Take neurons out of every block of `net`, in place; yields each narrowing layer's name, the columns that stay
    and its weight with 0 in the others.

    Blocks go in the order they run; each makes up for what those before it changed. Shapes change at the end.
    """
    pairs = anatomy.neurons(net)
    kept = {}
    for (names, inputs), (_, originals) in zip(*(in_lockstep(each, groups, batches) for each in (net, reference)), strict=True):
        for name in (name for name in names if name in pairs):
            layer = net.get_submodule(name)
            biased = layer.bias is not None
            H, drift = moments(_with_ones(inputs, biased), _with_ones(originals, biased))
            whole = torch.cat([layer.weight.data, layer.bias.data[:, None]], 1) if biased else layer.weight.data
            target = corrected(whole, H, drift)
            stay, found = surgery(target, H, left(layer.weight.shape[1], sparsity), int(biased))
            layer.weight.data = found[:, : layer.weight.shape[1]].contiguous()
            if biased:
                layer.bias.data = found[:, -1].contiguous()
            kept[name] = stay
            yield name, stay, layer.weight.data
    for name, stay in kept.items():
        _narrow(net.get_submodule(name), None, stay)
        for wide in pairs[name]:
            _narrow(net.get_submodule(wide), stay, None)
    net.config.intermediate_size = len(next(iter(kept.values())))


def _with_ones(inputs, biased: bool) -> Iterator[torch.Tensor]:
    for X in inputs:
        yield torch.cat([X, torch.ones(len(X), 1)], 1) if biased else X


def _narrow(layer, rows, columns) -> None:
    weight = layer.weight.data if rows is None else layer.weight.data[rows]
    layer.weight.data = (weight if columns is None else weight[:, columns]).contiguous()
    if rows is not None and layer.bias is not None:
        layer.bias.data = layer.bias.data[rows].contiguous()
    layer.out_features, layer.in_features = layer.weight.shape
