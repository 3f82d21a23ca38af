"""One layer by itself: the keys of a `quantize` step, turned into calls of the methods."""

from dataclasses import replace

import torch

from kerf.core.errors import refuse
from kerf.tensors import masks
from kerf.calibration.hessian import DAMPING, act_order, inverse_factor, ordered
from kerf.quantize.gptq import gptq
from kerf.tensors.quantized import find_grid
from kerf.quantize.rtn import rtn
from kerf.config import Quantize


def one_layer(name, layer, step: Quantize, second=None, kept=None):
    """Quantized of one layer by itself; second: moments of its input, None for embeddings; kept: of a pruned weight."""
    if isinstance(layer, torch.nn.Embedding):
        return embedding(name, layer, step)
    if step.method == "gptq" and second is not None:
        result, _ = gptq_layer(name, layer.weight.data, second, *factor(second, step), step, kept)
        if result:
            return result
    return rtn_layer(name, layer, step, None if second is None else second.diagonal(), kept)


def embedding(name, layer, step):
    """Word embeddings: a grid a row, whatever the linear layers have; no activations weigh the columns of a look-up."""
    columns = layer.weight.shape[1]
    options = _grid_options(step, columns) | {"bits": step.embedding_bits(), "per_tensor": False, "group_size": columns}
    return _named(name, rtn, layer.weight.data, **options)


def _grid_options(step: Quantize, columns: int, importance=None) -> dict:
    """Keyword arguments of `find_grid` and `rtn` for a linear layer of so many columns."""
    return {
        "bits": step.bits,
        "group_size": step.group_size or columns,
        "symmetric": step.symmetric,
        "clip": step.clip != "none",
        "importance": importance if step.clip == "hessian" else None,
        "scale_dtype": getattr(torch, step.scale_dtype),
        "per_tensor": step.granularity == "tensor",
    }


def rtn_layer(name, layer, step, importance, kept=None):
    """Rounded to nearest. importance: (columns,) second moments of the input, or None; kept: of a pruned weight."""
    weight = layer.weight.data
    if step.sparsity is not None:
        kept = masks.of_layer(masks.magnitude(weight), step.sparsity, step.nm_pattern())
    return replace(_named(name, rtn, weight, **_grid_options(step, weight.shape[1], importance)), kept=kept)


def factor(H, step):
    """The order of the columns, and the inverse factor in that order with the damping it took."""
    order = act_order(H) if step.act_order else torch.arange(len(H))
    return order, inverse_factor(ordered(H, order))


def gptq_layer(name, weight, H, order, factor, step, kept=None):
    """GPTQ with what `factor` gives for H: Quantized, or None where H could not be factorized; and a note."""
    if step.sparsity is not None and factor[0] is not None:
        kept = least_costly(weight, order, factor[0], step)
    shown = weight if kept is None else weight * kept  # what is 0 for good does not ask for a place on the grid
    grid = _named(name, find_grid, shown, **_grid_options(step, len(H), H.diagonal()))
    result, damping = gptq(weight, H, *grid, step.bits, order, step.symmetric, factor, step.sweeps, kept)
    if result is None:
        return None, "second moments could not be factorized: rounded to nearest"
    return result, f"damping raised to {damping:g}" if damping > DAMPING else ""


def least_costly(weight, order, R, step):
    """bool (rows, columns): False where a weight costs least to remove, w^2 / inverse(H)[i, i] (Hassibi and Stork 1993).

    R: the factor of inverse(H) = R^T R with columns in `order`. Which weights go is settled before the pass over
    the columns, so that act-order and N:M patterns of neighbours do not get in each other's way.
    """
    diagonal = torch.empty(len(R))
    diagonal[order] = R.square().sum(0)
    return masks.of_layer(weight.float().square() / diagonal, step.sparsity, step.nm_pattern())


def _named(name, function, weight, **options):
    """Call `function`; a scale that does not fit is refused with the layer's name."""
    try:
        return function(weight, **options)
    except OverflowError as error:
        raise refuse("scale_dtype", name, f"float32 for this layer: {error}") from None
