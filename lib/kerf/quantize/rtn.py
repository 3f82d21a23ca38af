"""Round to nearest: each weight goes to the closest point of its grid, whatever the others do."""

import torch

from kerf.tensors.quantized import Quantized, find_grid, round_to


def rtn(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    clip: bool = False,
    importance: torch.Tensor | None = None,
    scale_dtype: torch.dtype = torch.float16,
    per_tensor: bool = False,
) -> Quantized:
    """Quantize weight (rows, columns) with one grid per `group_size` columns of a row.

    importance: (columns,) weights of the clip search, see `find_grid`. `per_tensor` shares one grid.
    """
    scale, zero_point = find_grid(weight, bits, group_size, symmetric, clip, importance, scale_dtype, per_tensor)
    codes = round_to(weight, scale, zero_point, bits)
    return Quantized(codes, scale, zero_point, bits, weight.shape[1] // scale.shape[1], symmetric)
