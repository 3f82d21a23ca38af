"""The uniform grid: weight ~ (code - zero_point) * scale, and where to put it.

A grid is shared by a whole tensor, a row (channel) or `group_size` neighbours in a row. Codes are
unsigned, 0 .. 2**bits - 1; a symmetric grid has its zero point fixed in the middle. Scales are rounded
to the dtype they are stored in *before* weights are rounded, so that what is stored is what was chosen.

Asymmetric min-max grid: Jacob et al. 2018 (arXiv:1712.05877), eq. 1. The clip search shrinks the range
and keeps the factor of least squared error, weighted by `importance` where it is given.
"""

from dataclasses import dataclass

import torch

COARSE = [1 - step / 10 for step in range(9)]  # 1.0 down to 0.2: at 2 bits the best is about 0.4
FINE = [step / 50 for step in (-4, -3, -2, -1, 1, 2, 3, 4)]  # then around the best of them
_CHUNK = 1 << 16  # weights searched at a time, so that the working set stays in the processor's cache


@dataclass(frozen=True)
class Quantized:
    """A weight on its grid. codes: uint8 (rows, columns); scale, zero_point: (rows or 1, groups)."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    bits: int
    group_size: int
    symmetric: bool

    def dequantize(self) -> torch.Tensor:
        """float32 (rows, columns)."""
        # One allocation, then in place: page faults of fresh memory cost more than the arithmetic.
        values = self.codes.to(torch.float32)
        grouped = values.view(*self.scale.shape, -1)
        grouped.sub_(self.zero_point[..., None].float()).mul_(self.scale[..., None].float())
        return values

    def stored_bits(self) -> int:
        """Bits of codes, scales and zero points, before the file's compression."""
        zero_bits = 0 if self.symmetric else self.zero_point.numel() * self.bits
        return self.codes.numel() * self.bits + self.scale.numel() * self.scale.element_size() * 8 + zero_bits


def find_grid(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    symmetric: bool,
    clip: bool,
    importance: torch.Tensor | None = None,
    scale_dtype: torch.dtype = torch.float16,
    per_tensor: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """scale and zero_point of shape (rows, columns // group_size), or (1, 1) for a whole tensor.

    weight: (rows, columns); importance: (columns,), the weight of a column's squared error (the diagonal
    of the second moments of its input), or None for plain mean squared error. Raises OverflowError when
    a scale does not fit `scale_dtype`.
    """
    rows, columns = weight.shape
    if per_tensor:
        tiled = None if importance is None else importance.repeat(rows)
        flat = weight.reshape(1, -1)
        return find_grid(flat, bits, flat.shape[1], symmetric, clip, tiled, scale_dtype)
    groups = weight.float().reshape(rows, columns // group_size, group_size)
    weights = None if importance is None else importance.float().reshape(1, -1, group_size)
    if not clip:
        return _affine(*_range(groups), bits, symmetric, scale_dtype)
    step = max(1, _CHUNK // columns)
    pieces = [
        _search(groups[start : start + step], bits, symmetric, weights, scale_dtype) for start in range(0, rows, step)
    ]
    scale, zero_point = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return scale, zero_point


def _range(groups):
    return groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)


def _search(groups, bits, symmetric, importance, scale_dtype):
    """Grid of least weighted squared error over factors by which the range of each group is shrunk."""
    low, high = _range(groups)
    scratch = torch.empty_like(groups), torch.empty_like(groups)
    best_error, best_factor = torch.full_like(low, torch.inf), torch.ones_like(low)
    best = _affine(low, high, bits, symmetric, scale_dtype)

    def attempt(factor):
        grid = _affine(low * factor, high * factor, bits, symmetric, scale_dtype)
        error = _squared_error(groups, *grid, bits, importance, *scratch)
        better = error < best_error
        torch.where(better, error, best_error, out=best_error)
        torch.where(better, factor, best_factor, out=best_factor)
        for kept, new in zip(best, grid, strict=True):
            torch.where(better, new, kept, out=kept)

    for factor in COARSE:
        attempt(torch.full_like(low, factor))
    middle = best_factor.clone()
    for offset in FINE:
        attempt((middle + offset).clamp_(max=1.0))
    return best


def _squared_error(groups, scale, zero_point, bits, importance, codes, error):
    """Per group; in units of the scale first, which saves half of the passes over memory."""
    scale = scale.float()
    torch.addcmul(zero_point[..., None].float(), groups, (1 / scale)[..., None], out=codes)
    torch.round(codes, out=error).clamp_(0, 2**bits - 1).sub_(codes)
    weighted = error if importance is None else torch.mul(error, importance, out=codes)
    return torch.linalg.vecdot(error, weighted) * scale.square()


def _affine(low, high, bits, symmetric, scale_dtype):
    levels = 2**bits - 1
    span = 2 * torch.maximum(-low, high) if symmetric else high - low
    # A row of zeros, or of values below the dtype's smallest, still needs a scale that divides. float16's
    # subnormals serve: as float32 they are normal numbers.
    smallest = 2**-24 if scale_dtype == torch.float16 else torch.finfo(scale_dtype).smallest_normal
    scale = (span / levels).to(scale_dtype).clamp(min=smallest)
    if not scale.isfinite().all():
        raise OverflowError(f"a scale of {float(span.max()) / levels:.3g} does not fit {scale_dtype}")
    if symmetric:
        return scale, torch.full_like(low, 2 ** (bits - 1), dtype=torch.uint8)
    return scale, (-low / scale.float()).round().clamp(0, levels).to(torch.uint8)


def round_to(weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (uint8, shape of weight) of the points nearest to weight; scale, zero_point: (rows or 1, groups)."""
    grouped = weight.float().reshape(*scale.shape, -1)
    codes = grouped / scale[..., None].float()
    codes.add_(zero_point[..., None].float()).round_().clamp_(0, 2**bits - 1)
    return codes.to(torch.uint8).reshape(weight.shape)
