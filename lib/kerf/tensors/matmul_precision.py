"""Matrix products of calibration text, several times faster on processors with units for bfloat16.

Factors are rounded to bfloat16 (8 bits of mantissa), sums stay float32. Second moments computed this way are off by about a
thousandth, far below the sampling noise of a calibration text. Everything that Kerf measures, and the columns that GPTQ rounds,
is computed in float32. Processors without such units use float32 at the same speed. Small products gain nothing and training
steps of small blocks lose time, so only passes of calibration text use it.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def rounded_products(rounded: bool = True) -> Iterator[None]:
    """Let products of float32 matrices round their factors to bfloat16 inside this context, if `rounded`."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if rounded else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
