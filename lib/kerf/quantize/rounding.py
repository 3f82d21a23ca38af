"""Rounding to the nearest point of a grid, the fallback of every method, and the grid that a step's parameters describe."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kerf.calibration.layer import Layer
from kerf.core.errors import refuse
from kerf.tensors import masks
from kerf.tensors.granularity import PerTensor
from kerf.tensors.quantized import Quantized, find_grid, round_to


def rtn(
    weight: Tensor,
    bits: float,
    group_size: int,
    symmetric: bool = False,
    clip: bool = False,
    importance: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float16,
    per_tensor: bool = False,
) -> Quantized:
    """Quantize weight (rows, columns) with one grid per `group_size` columns of a row.

    importance: (columns,) weights of the clip search, see `find_grid`. `per_tensor` shares one grid.
    """
    scale, zero_point = find_grid(
        weight, bits, group_size, symmetric, clip, importance, scale_dtype, per_tensor
    )
    codes = round_to(weight, scale, zero_point, bits)
    return Quantized(codes, scale, zero_point, bits, weight.shape[1] // scale.shape[1], symmetric)


def nearest(layer: Layer) -> tuple[Quantized, str]:
    """The layer rounded to nearest, and no note; with a sparsity, without its smallest weights."""
    step, weight, mask = layer.step, layer.weight, layer.mask
    if step.sparsity is not None:
        mask = masks.of_layer(masks.magnitude(weight), step.sparsity, step.nm_pattern())
    importance = None if layer.H is None else layer.H.diagonal()
    options = grid_options(step, weight.shape[1], importance)
    return replace(named(layer.name, rtn, weight, **options), mask=mask), ""


def grid_options(step: Any, columns: int, importance: Tensor | None = None) -> dict[str, Any]:
    """Keyword arguments of `find_grid` and `rtn` for a layer with that many columns; step: of a method with a grid."""
    return {
        "bits": step.bits,
        "group_size": step.grid().group_size(columns),
        "symmetric": step.symmetric,
        "clip": step.clip != "none",
        "importance": importance if step.clip == "hessian" else None,
        "scale_dtype": getattr(torch, step.scale_dtype),
        "per_tensor": isinstance(step.grid(), PerTensor),
    }


def named(name: str, function: Callable, weight: Tensor, **options: Any) -> Any:
    """Call `function`; raises InputError with the layer's name for a scale that does not fit."""
    try:
        return function(weight, **options)
    except OverflowError as error:
        raise refuse("scale_dtype", name, f"float32 for this layer: {error}") from None
