"""Matrix products of calibration text, several times faster where the processor has units for bfloat16.

Factors are rounded to bfloat16 (8 bits of mantissa), sums stay float32. What is computed so only steers how
weights are cut: errors of a thousandth or so are far below the noise of a sample of text. What Kerf
measures, and the columns that GPTQ rounds, are computed in float32. Processors without such units go on in
float32, no slower. Small products gain nothing by it, and training steps of small blocks lose, so only passes of
calibration text use it.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def rounded_products(rounded: bool = True) -> Iterator[None]:
    """Let products of float32 matrices round their factors to bfloat16, or not, inside this context."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if rounded else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
