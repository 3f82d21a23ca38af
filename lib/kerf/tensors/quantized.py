"""The uniform grid: weight ~ (code - zero_point) * scale, and how scale and zero_point are chosen.

A grid is shared by a whole tensor, a row (channel) or `group_size` neighbours in a row. Codes are unsigned, 0 .. top_code(bits);
a symmetric grid has its zero point fixed in the middle. Scales are rounded to the dtype they are stored in *before* weights are
rounded, so the stored scale is the one that the codes were chosen for.

Zero points are whole, but half steps at 2 bits with a clip search: four points placed two on either side of zero have a tenth
less squared error on a normal distribution than zero itself, one below and two above it. The half step costs a bit per group.

Asymmetric min-max grid: Jacob et al. 2018 (arXiv:1712.05877), eq. 1. The clip search shrinks the range
(at 2 bits it also tries the zero points next to it) and keeps the grid of least squared error, weighted
by `importance` where it is given.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kerf.tensors import kernels
from kerf.tensors.packing import TERNARY

STRETCH = 1.3  # of ternary scales: more zeros compress better, for more squared error
COARSE = [1 - step / 10 for step in range(9)]  # 1.0 down to 0.2: at 2 bits the best is about 0.4
FINE = [step / 50 for step in (-4, -3, -2, -1, 1, 2, 3, 4)]  # then around the best of them


def top_code(bits: float) -> int:
    """Largest code of a width: 2 for ternary, 2**bits - 1 otherwise."""
    return 2 if bits == TERNARY else 2 ** int(bits) - 1


@dataclass(frozen=True)
class Quantized:
    """A weight on its grid. codes: uint8 (rows, columns); scale, zero_point (float32): (rows or 1, groups).

    mask: bool (rows, columns) of a pruned weight, which is 0 where it is False; None: nothing is pruned.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: float
    group_size: int
    symmetric: bool
    mask: Tensor | None = None

    def dequantize(self) -> Tensor:
        """float32 (rows, columns)."""
        # One allocation, then in place: page faults of fresh memory cost more than the arithmetic.
        values = self.codes.to(torch.float32)
        grouped = values.view(*self.scale.shape, -1)
        grouped.sub_(self.zero_point[..., None]).mul_(self.scale[..., None].float())
        return values if self.mask is None else values.mul_(self.mask)

    def to(self, device: torch.device | str) -> "Quantized":
        """The same weight on another device."""
        tensors = {name: getattr(self, name) for name in ("codes", "scale", "zero_point", "mask")}
        moved = {name: t.to(device) for name, t in tensors.items() if t is not None}
        return replace(self, **moved)

    def stored_bits(self) -> float:
        """Bits of codes, scales, zero points and the mask, before the file's compression."""
        zero_bits = 0 if self.symmetric else self.zero_point.numel() * zero_point_bits(self.bits)
        codes = self.codes.numel() if self.mask is None else int(self.mask.sum())
        mask_bits = 0 if self.mask is None else self.mask.numel()
        scale_bits = self.scale.numel() * self.scale.element_size() * 8
        return codes * self.bits + mask_bits + scale_bits + zero_bits


def zero_step(bits: float, symmetric: bool = False) -> float:
    """The step that zero points are multiples of."""
    return 0.5 if bits == 2 and not symmetric else 1.0


def zero_point_bits(bits: float) -> int:
    """Bits that a zero point is stored in, as a multiple of `zero_step`."""
    return int(bits) + (zero_step(bits) < 1)


def find_grid(
    weight: Tensor,
    bits: float,
    group_size: int,
    symmetric: bool,
    clip: bool,
    importance: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float16,
    per_tensor: bool = False,
) -> tuple[Tensor, Tensor]:
    """scale and zero_point of shape (rows, columns // group_size), or (1, 1) for a whole tensor.

    weight: (rows, columns); importance: (columns,), the weight of a column's squared error (the diagonal
    of the second moments of its input), or None for plain mean squared error. Ternary grids are symmetric.
    Raises OverflowError when a scale does not fit `scale_dtype`.
    """
    rows, columns = weight.shape
    if per_tensor:
        tiled = None if importance is None else importance.repeat(rows)
        flat = weight.reshape(1, -1)
        return find_grid(flat, bits, flat.shape[1], symmetric, clip, tiled, scale_dtype)
    symmetric = symmetric or bits == TERNARY
    groups = weight.float().contiguous().view(rows, columns // group_size, group_size)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if clip:
        weights = (
            groups.new_ones(columns) if importance is None else importance.float().contiguous()
        )
        scale, zero_point = _search(groups, low, high, bits, symmetric, weights, scale_dtype)
    else:
        scale, zero_point = _affine(low, high, bits, symmetric, scale_dtype, 1.0)
    if not scale.isfinite().all():
        widest = float(torch.maximum(-low, high).max())
        raise OverflowError(f"a scale for weights up to {widest:.3g} does not fit {scale_dtype}")
    return scale, zero_point


def _search(
    groups: Tensor,
    low: Tensor,
    high: Tensor,
    bits: float,
    symmetric: bool,
    importance: Tensor,
    scale_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Grid of least weighted squared error over factors by which the range of each group is shrunk."""
    step, top = zero_step(bits, symmetric), top_code(bits)
    scale, zero_point = _affine(low, high, bits, symmetric, scale_dtype, step)
    weights = importance.view(groups.shape[1:])
    best = (torch.full_like(low, torch.inf), torch.ones_like(low), scale.float(), zero_point)

    def attempt(factor: Tensor) -> None:
        scale, middle = _affine(low * factor, high * factor, bits, symmetric, scale_dtype, step)
        for shift in (0, -step, step) if bits == 2 and not symmetric else (0,):
            trial = (factor, scale.float(), (middle + shift).clamp_(0, top))
            kernels.of(groups).keep_better(groups, weights, top, trial, best)

    for factor in COARSE:
        attempt(torch.full_like(low, factor))
    middle = best[1].clone()
    for offset in FINE:
        attempt((middle + offset).clamp_(max=1.0))
    stretch = STRETCH if bits == TERNARY else 1
    return (best[2] * stretch).to(scale_dtype), best[3]


def _affine(
    low: Tensor, high: Tensor, bits: float, symmetric: bool, scale_dtype: torch.dtype, step: float
) -> tuple[Tensor, Tensor]:
    """Grid from low to high, the zero point a multiple of `step`."""
    top = top_code(bits)
    span = 2 * torch.maximum(-low, high) if symmetric else high - low
    # A row of zeros, or of values below the dtype's smallest, still needs a scale that divides. float16's
    # subnormals serve: as float32 they are normal numbers.
    smallest = 2**-24 if scale_dtype == torch.float16 else torch.finfo(scale_dtype).smallest_normal
    scale = (span / top).to(scale_dtype).clamp(min=smallest)
    if symmetric:
        return scale, torch.full_like(low, (top + 1) // 2)
    return scale, (-low / scale.float() / step).round().mul_(step).clamp_(0, top)


def round_to(weight: Tensor, scale: Tensor, zero_point: Tensor, bits: float) -> Tensor:
    """Codes (uint8, shape of weight) of the points nearest to weight; scale, zero_point: (rows or 1, groups)."""
    codes = weight.float().reshape(*scale.shape, -1) / scale[..., None].float()
    codes.add_(zero_point[..., None]).round_().clamp_(0, top_code(bits))
    return codes.to(torch.uint8).reshape(weight.shape)
