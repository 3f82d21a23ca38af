"""Trainable forms of compressed weights: a quantized weight on its grid, and a pruned float weight that keeps its zeros.

Codes are trained as real numbers v that the forward pass rounds, with a straight-through gradient:

    weight = (clamp(round(v), 0, top) - zero_point) * scale
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from kerf.tensors.quantized import Quantized, top_code, zero_step


class LearnableQuantizer(nn.Module):
    """A quantized weight with trainable codes, scales and zero points. rows: those that are trained; default all."""

    def __init__(self, start: Quantized, rows: Tensor | None = None) -> None:
        super().__init__()
        codes = start.codes
        every = torch.arange(len(codes), device=codes.device)
        self.start, self.rows = start, every if rows is None else rows
        per_tensor = len(start.scale) == 1 and len(start.codes) > 1
        self.grid_rows = slice(None) if per_tensor else self.rows  # of scale and zero_point
        self.scale_start = start.scale[self.grid_rows].float()[..., None]  # (rows, groups, 1)
        self.codes = torch.nn.Parameter(
            codes[self.rows].float().view(*self.scale_start.shape[:2], -1)
        )
        self.scale = torch.nn.Parameter(torch.ones_like(self.scale_start))  # times scale_start
        self.zero_point = torch.nn.Parameter(start.zero_point[self.grid_rows][..., None].clone())
        self.zero_point.requires_grad_(not start.symmetric)

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale and zero point as they would be stored, with straight-through gradients."""
        step, top = zero_step(self.start.bits, self.start.symmetric), top_code(self.start.bits)
        scale = self.scale_start * self.scale
        smallest = float(self.scale_start.min()) / 100
        stored = scale.detach().clamp(min=smallest).to(self.start.scale.dtype).float()
        zero_point = (self.zero_point.detach() / step).round().mul_(step).clamp_(0, top)
        return (
            _straight_through(self.codes, self.codes.detach().round().clamp_(0, top)),
            _straight_through(scale, stored),
            _straight_through(self.zero_point, zero_point),
        )

    def forward(self) -> Tensor:
        """The weight (rows, columns)."""
        codes, scale, zero_point = self.parts()
        weight = ((codes - zero_point) * scale).view(len(self.rows), -1)
        return weight if self.start.mask is None else weight * self.start.mask[self.rows]

    @torch.no_grad()
    def clamp_codes(self) -> None:
        """Keep codes near the grid: far outside of it, a code needs many steps before its rounded value changes."""
        self.codes.clamp_(-0.45, top_code(self.start.bits) + 0.45)

    @torch.no_grad()
    def result(self) -> Quantized:
        """The trained weight; rows that took no part are those of `start`."""
        codes, scale, zero_point = self.parts()
        trained = {
            part: getattr(self.start, part).clone() for part in ("codes", "scale", "zero_point")
        }
        trained["codes"][self.rows] = codes.view(len(self.rows), -1).to(torch.uint8)
        trained["scale"][self.grid_rows] = scale[..., 0].to(self.start.scale.dtype)
        trained["zero_point"][self.grid_rows] = zero_point[..., 0]
        return replace(self.start, **trained)


class LearnableMasked(nn.Module):
    """A pruned float weight whose remaining values are trained; zeros stay zero."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.pruned = start == 0
        self.weight = torch.nn.Parameter(start.clone())

    def forward(self) -> Tensor:
        """The weight (rows, columns)."""
        return self.weight.masked_fill(self.pruned, 0)

    def clamp_codes(self) -> None:
        """A float weight has no codes."""

    def result(self) -> Tensor:
        """The trained weight."""
        return self().detach()


def _straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """Exactly `rounded`, with the gradient of `value` (Bengio et al. 2013, arXiv:1308.3432)."""
    return rounded + (value - value.detach())
