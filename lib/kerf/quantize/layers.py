"""Layers by themselves, by any method."""

from dataclasses import replace

import torch

from kerf.calibration.layer import Layer
from kerf.config.methods import METHODS
from kerf.config.quantize import Quantize
from kerf.core.registry import resolved
from kerf.quantize.rounding import grid_options, named, nearest, rtn
from kerf.tensors.quantized import Quantized


def one_layer(
    name: str,
    module: torch.nn.Module,
    step: Quantize,
    second: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> Quantized:
    """A layer by itself, as the step's method would quantize it.

    second: moments of its input, None for embeddings or without calibration text; mask: of a pruned weight.
    """
    if isinstance(module, torch.nn.Embedding):
        return embedding(name, module, step)
    method = METHODS[step.method]
    given = Layer(name, module.weight.data, step, second, mask=mask)
    if second is None and method.calibration == "sequential":
        return nearest(given)[0]
    shared = resolved(method.shared)(second, step) if method.shared else None
    return resolved(method.layer)(replace(given, shared=shared))[0]


def embedding(name: str, module: torch.nn.Embedding, step: Quantize) -> Quantized:
    """Word embeddings: a grid a row, whatever the linear layers have; no activations weigh the columns of a look-up."""
    columns = module.weight.shape[1]
    options = grid_options(step, columns) | {
        "bits": step.embedding_bits(),
        "per_tensor": False,
        "group_size": columns,
    }
    return named(name, rtn, module.weight.data, **options)
