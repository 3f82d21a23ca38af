"""The layout of a layer in a GPTQ checkpoint, as AutoGPTQ made it common.

A linear layer of `rows` x `columns` at 2, 3, 4 or 8 bits becomes

    qweight  int32 (columns * bits / 32, rows)     codes along the columns
    qzeros   int32 (groups, rows * bits / 32)      zero points along the rows
    scales   float16 (groups, rows)                weight = (code - zero point) * scale
    g_idx    int32 (columns,)                      the group of each column

Words fill from their least significant bit on, and 3-bit codes run on from one word into the next. The
first convention (`gptq`, v1) stores one less than the zero point, the second (`gptq_v2`) the zero point. In
the first a zero point of 0 has no code of its own, and readers make 2**bits of it or let it run over into
its neighbour. Kerf writes such a group upside down, code -> top - code and scale -> -scale, which is the
same weight to the last bit for every reader.
"""

from dataclasses import replace

import numpy as np
import torch

from kerf.core.errors import refuse
from kerf.tensors.packing import pack, unpack
from kerf.tensors.quantized import Quantized, top_code

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def packed(name: str, quantized: Quantized, form: str) -> dict[str, torch.Tensor]:
    """The four tensors of a layer. Raises InputError, naming the layer, for what the layout cannot say."""
    columns = quantized.codes.shape[1]
    _check_layer(name, quantized)
    full = _upright(quantized, form == "gptq")
    zeros = full.zero_point.T.numpy().astype(np.int64) - (form == "gptq")
    return {
        "qweight": _words(full.codes.numpy(), full.bits).T.contiguous(),
        "qzeros": _words(zeros, full.bits),
        "scales": full.scale.T.contiguous(),
        "g_idx": torch.arange(columns, dtype=torch.int32) // full.group_size,
    }


def unpacked(name: str, parts: dict[str, torch.Tensor], bits: int, form: str) -> Quantized:
    """A layer of its four tensors. Raises InputError, naming the layer, for tensors that do not fit together."""
    rows, columns = parts["qweight"].shape[1], len(parts["g_idx"])
    check_parts(
        name, {part: list(tensor.shape) for part, tensor in parts.items()}, parts["g_idx"], bits
    )
    group_size = columns // len(parts["scales"])
    codes = _values(parts["qweight"].T, bits, columns)
    qzeros = parts["qzeros"].contiguous()
    if (
        form == "gptq" and bits != 3
    ):  # an int32 at a time: what a zero point of 0 borrowed is given back
        qzeros = qzeros + sum(1 << shift for shift in range(0, 32, bits))
    zeros = _values(qzeros, bits, rows).astype(np.int64)
    if form == "gptq" and bits == 3:
        zeros = (zeros + 1) % 8
    zero_point = torch.from_numpy(zeros.T.astype(np.float32)).contiguous()
    scale = parts["scales"].T.contiguous()
    scale = scale if scale.dtype == torch.float16 else scale.float()
    found = _turned(
        Quantized(torch.from_numpy(codes.copy()), scale, zero_point, bits, group_size, False),
        scale < 0,
    )
    return replace(found, symmetric=bool((found.zero_point == (top_code(bits) + 1) // 2).all()))


def check_parts(name: str, shapes: dict[str, list[int]], g_idx: torch.Tensor, bits: int) -> None:
    """Refuse shapes that do not fit together at `bits`, and groups that are not runs of columns."""
    (words, rows), (groups, zero_words), columns = shapes["qweight"], shapes["qzeros"], len(g_idx)
    fits = (
        words * 32 == columns * bits
        and zero_words * 32 == rows * bits
        and shapes["scales"] == [groups, rows]
    )
    if not fits or columns % groups:
        raise refuse(
            "checkpoint", name, f"tensors that fit together at {bits} bits; these are {shapes}"
        )
    if not torch.equal(g_idx.long(), torch.arange(columns) // (columns // groups)):
        raise refuse(
            "checkpoint",
            f"{name}.g_idx",
            "groups of neighbouring columns (static groups, or no act-order)",
        )


def _check_layer(name: str, quantized: Quantized) -> None:
    rows, columns = quantized.codes.shape
    if quantized.bits not in BITS:
        raise refuse("bits", quantized.bits, f"2, 3, 4 or 8 in a GPTQ checkpoint ({name})")
    if quantized.scale.dtype != torch.float16:
        raise refuse("scale_dtype", "float32", f"float16 in a GPTQ checkpoint ({name})")
    if rows * quantized.bits % 32 or columns * quantized.bits % 32:
        raise refuse(
            "model", name, f"rows and columns that fill words of 32 bits at {quantized.bits} bits"
        )
    if (quantized.zero_point % 1 != 0).any():
        accepted = "whole zero points, as 2 bits have with symmetric true, or with clip none and no reconstruct"
        raise refuse("CANDIDATE", name, accepted)


def _upright(quantized: Quantized, no_zero: bool) -> Quantized:
    """With a grid for every row, and what is pruned at its zero point; no_zero: and no zero point of 0."""
    shape = (len(quantized.codes), quantized.scale.shape[1])
    scale, zero_point = (
        part.expand(shape).contiguous() for part in (quantized.scale, quantized.zero_point)
    )
    codes = quantized.codes
    if quantized.kept is not None:
        zeros = (
            zero_point[..., None].expand(*shape, codes.shape[1] // shape[1]).reshape(codes.shape)
        )
        codes = torch.where(quantized.kept, codes, zeros.to(torch.uint8))
    full = replace(quantized, codes=codes, scale=scale, zero_point=zero_point)
    return _turned(full, full.zero_point == 0) if no_zero else full


def _turned(quantized: Quantized, which: torch.Tensor) -> Quantized:
    """The same weight, with the grids in `which` (rows, groups) upside down."""
    top = top_code(quantized.bits)
    codes = quantized.codes.view(*which.shape, -1)
    return replace(
        quantized,
        codes=torch.where(which[..., None], top - codes, codes).view(quantized.codes.shape),
        scale=torch.where(which, -quantized.scale, quantized.scale),
        zero_point=torch.where(which, top - quantized.zero_point, quantized.zero_point),
    )


def _words(values: np.ndarray, bits: int) -> torch.Tensor:
    """Values (m, n) as int32 (m, n * bits / 32)."""
    return torch.from_numpy(
        np.frombuffer(pack(values, bits), "<i4").reshape(len(values), -1).copy()
    )


def _values(words: torch.Tensor, bits: int, count: int) -> np.ndarray:
    """int32 (m, n * bits / 32) as values (m, count)."""
    raw = np.ascontiguousarray(words.numpy())
    return unpack(raw.tobytes(), bits, raw.size * 32 // bits).reshape(len(raw), -1)[:, :count]
