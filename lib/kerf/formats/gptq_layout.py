"""The layout of a layer in a GPTQ checkpoint, as AutoGPTQ made it common.

A linear layer of `rows` x `columns` at 2, 3, 4 or 8 bits becomes

    qweight  int32 (columns * bits / 32, rows)     codes along the columns
    qzeros   int32 (groups, rows * bits / 32)      zero points along the rows
    scales   float16 (groups, rows)                weight = (code - zero point) * scale
    g_idx    int32 (columns,)                      the group of each column

Words fill from their least significant bit, and 3-bit codes continue from one word into the next. The first format
(`gptq`, v1) stores the zero point minus one, the second (`gptq_v2`) the zero point. In the first, a zero point of 0 has no
code of its own: readers take it for 2**bits or let it borrow from its neighbour. Kerf flips such a group, code -> top -
code and scale -> -scale, which is the same weight to the last bit for every reader.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kerf.core.errors import refuse
from kerf.tensors.packing import pack, unpack
from kerf.tensors.quantized import Quantized, top_code

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def pack_layer(name: str, layer: Quantized, version: str) -> dict[str, Tensor]:
    """The four tensors of a layer in a version of FORMATS. Raises InputError, naming the layer, for what cannot be stored."""
    (rows, columns), groups = layer.codes.shape, layer.scale.shape[1]
    if layer.bits not in BITS:
        raise refuse("bits", layer.bits, f"2, 3, 4 or 8 in a GPTQ checkpoint ({name})")
    if layer.scale.dtype != torch.float16:
        raise refuse("scale_dtype", "float32", f"float16 in a GPTQ checkpoint ({name})")
    if rows * layer.bits % 32 or columns * layer.bits % 32:
        accepted = f"rows and columns that fill words of 32 bits at {layer.bits} bits"
        raise refuse("model", name, accepted)
    if (layer.zero_point % 1 != 0).any():
        accepted = "whole zero points, as 2 bits have with symmetric true, or with clip none and no reconstruct"
        raise refuse("CANDIDATE", name, accepted)
    grid = [part.expand(rows, groups).contiguous() for part in (layer.scale, layer.zero_point)]
    layer = replace(layer, scale=grid[0], zero_point=grid[1])
    if layer.mask is not None:  # pruned weights are 0: they get the code of their zero point
        zeros = layer.zero_point.repeat_interleave(columns // groups, 1).to(torch.uint8)
        layer = replace(layer, codes=torch.where(layer.mask, layer.codes, zeros))
    if version == "gptq":
        layer = _flip(layer, layer.zero_point == 0)
    zeros = layer.zero_point.T.to(torch.int64) - int(version == "gptq")
    return {
        "qweight": _words(layer.codes, layer.bits).T.contiguous(),
        "qzeros": _words(zeros, layer.bits),
        "scales": layer.scale.T.contiguous(),
        "g_idx": torch.arange(columns, dtype=torch.int32) // layer.group_size,
    }


def unpack_layer(parts: dict[str, Tensor], bits: int, version: str) -> Quantized:
    """The layer of four tensors, which passed `check_parts`."""
    qweight, qzeros, scales, g_idx = (parts[part] for part in PARTS)
    if (
        version == "gptq" and bits != 3
    ):  # one to every field of a word at once, which undoes borrows
        qzeros = qzeros + sum(1 << shift for shift in range(0, 32, bits))
    zero_point = _values(qzeros, bits, qweight.shape[1]).T.float().contiguous()
    if version == "gptq" and bits == 3:
        zero_point = (zero_point + 1) % 8
    scale = scales.T.contiguous()
    scale = scale if scale.dtype == torch.float16 else scale.float()
    codes = _values(qweight.T, bits, len(g_idx)).contiguous()
    layer = Quantized(codes, scale, zero_point, bits, len(g_idx) // len(scales), symmetric=False)
    layer = _flip(layer, scale < 0)
    return replace(layer, symmetric=bool((layer.zero_point == (top_code(bits) + 1) // 2).all()))


def check_parts(name: str, shapes: dict[str, list[int]], g_idx: Tensor, bits: int) -> None:
    """Refuse shapes that do not fit together at `bits`, and groups that are not runs of columns."""
    (words, rows), (groups, zero_words), columns = shapes["qweight"], shapes["qzeros"], len(g_idx)
    packed = [words * 32, zero_words * 32, shapes["scales"]]
    if packed != [columns * bits, rows * bits, [groups, rows]] or columns % groups:
        accepted = f"tensors that fit together at {bits} bits; these are {shapes}"
        raise refuse("checkpoint", name, accepted)
    if not torch.equal(g_idx.long(), torch.arange(columns) // (columns // groups)):
        accepted = "groups of neighbouring columns (static groups, or no act-order)"
        raise refuse("checkpoint", f"{name}.g_idx", accepted)


def _flip(layer: Quantized, groups: Tensor) -> Quantized:
    """The same weight with the grids of `groups`, bool (rows, groups), running downwards."""
    top = top_code(layer.bits)
    codes = layer.codes.view(*groups.shape, -1)
    codes = torch.where(groups[..., None], top - codes, codes).view(layer.codes.shape)
    scale = torch.where(groups, -layer.scale, layer.scale)
    zero_point = torch.where(groups, top - layer.zero_point, layer.zero_point)
    return replace(layer, codes=codes, scale=scale, zero_point=zero_point)


def _words(values: Tensor, bits: float) -> Tensor:
    """Values (m, n) as int32 (m, n * bits / 32)."""
    words = np.frombuffer(bytearray(pack(values.numpy(), bits)), "<i4")
    return torch.from_numpy(words).view(len(values), -1)


def _values(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 (m, n * bits / 32) as uint8 values (m, count)."""
    packed = words.contiguous().numpy().tobytes()
    return torch.from_numpy(unpack(packed, bits, words.numel() * 32 // bits)).view(len(words), -1)[
        :, :count
    ]
