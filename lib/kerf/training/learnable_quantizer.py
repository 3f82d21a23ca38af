"""A quantized weight whose codes, scales and zero points can be learned, or a pruned one that stays as sparse.

Codes are real numbers v that the forward pass rounds, with the gradient going straight through:

    weight = (clamp(round(v), 0, top) - zero_point) * scale
"""

from dataclasses import replace

import torch

from kerf.tensors.quantized import Quantized, top_code, zero_step


class LearnableQuantizer(torch.nn.Module):
    """A quantized weight whose codes, scales and zero points can be learned."""

    def __init__(self, start: Quantized, rows: torch.Tensor | None = None) -> None:
        """rows: which rows take part (of an embedding: the tokens that occur); default all."""
        super().__init__()
        self.start, self.rows = start, torch.arange(len(start.codes)) if rows is None else rows
        shared = len(start.scale) == 1 and len(start.codes) > 1  # one grid for the whole tensor
        pick = slice(None) if shared else self.rows
        self.scale_start = start.scale[pick].float()[..., None]
        codes = start.codes[self.rows].float()
        self.codes = torch.nn.Parameter(codes.view(*self.scale_start.shape[:2], -1))
        self.scale = torch.nn.Parameter(torch.ones_like(self.scale_start))
        self.zero_point = torch.nn.Parameter(start.zero_point[pick][..., None].clone())
        self.zero_point.requires_grad_(not start.symmetric)

    def parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes, scale and zero point as they would be stored, with straight-through gradients."""
        step, top = zero_step(self.start.bits, self.start.symmetric), top_code(self.start.bits)
        scale = self.scale_start * self.scale
        smallest = float(self.scale_start.min()) / 100
        stored = scale.detach().clamp(min=smallest).to(self.start.scale.dtype).float()
        zero_point = (self.zero_point.detach() / step).round().mul_(step).clamp_(0, top)
        return (
            _Through.apply(self.codes, self.codes.detach().round().clamp_(0, top)),
            _Through.apply(scale, stored),
            _Through.apply(self.zero_point, zero_point),
        )

    def forward(self) -> torch.Tensor:
        """The weight (rows, columns)."""
        codes, scale, zero_point = self.parts()
        weight = ((codes - zero_point) * scale).view(len(self.rows), -1)
        return weight if self.start.kept is None else weight * self.start.kept[self.rows]

    @torch.no_grad()
    def keep_in_reach(self) -> None:
        """A code that ran past the end of the grid would feel no more gradient than one at the end."""
        self.codes.clamp_(-0.45, top_code(self.start.bits) + 0.45)

    @torch.no_grad()
    def result(self) -> Quantized:
        """What was learned, in place of what it started from."""
        codes, scale, zero_point = self.parts()
        if scale.shape[:2] == self.start.scale.shape:
            scale, zero_point = scale[..., 0].to(self.start.scale.dtype), zero_point[..., 0]
            return replace(
                self.start,
                codes=codes.to(torch.uint8).view(self.start.codes.shape),
                scale=scale,
                zero_point=zero_point,
            )
        whole = [
            part.clone() for part in (self.start.codes, self.start.scale, self.start.zero_point)
        ]
        for part, new in zip(
            whole, (codes.flatten(1), scale[..., 0], zero_point[..., 0]), strict=True
        ):
            part[self.rows] = new.to(part.dtype)
        return replace(self.start, codes=whole[0], scale=whole[1], zero_point=whole[2])


class LearnableMasked(torch.nn.Module):
    """A pruned float weight whose kept values can be learned; what is 0 stays 0."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.kept = start != 0
        self.weight = torch.nn.Parameter(start.clone())

    def forward(self) -> torch.Tensor:
        """The weight (rows, columns)."""
        return self.weight * self.kept

    def keep_in_reach(self) -> None:
        """Nothing holds a float weight."""

    @torch.no_grad()
    def result(self) -> torch.Tensor:
        """What was learned."""
        return self.weight.masked_fill(~self.kept, 0)


class _Through(torch.autograd.Function):
    """The rounded value, with the gradient going to the value itself (Bengio et al. 2013, arXiv:1308.3432)."""

    @staticmethod
    def forward(context, value, rounded):
        return rounded

    @staticmethod
    def backward(context, gradient):
        return gradient, None
