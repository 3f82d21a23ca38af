"""HQQ's weights for a request: python with_hqq.py REQUEST.json OUT_DIR, in HQQ's own environment.

HQQ looks at no text. Its solver of the zero points is on by default and they stay float. Groups along axis 0
did better here than along axis 1, the default of the library's layers (2 bits, group 64, mean cosine: 0.505
against 0.216, and 0.388 with rounded zero points).
"""

import torch
from common import SCALE_BITS, Job
from hqq.core.quantize import Quantizer

SETTINGS = {"axis": 0, "optimize": True, "round_zero": False}


def main() -> None:
    """Quantize every linear layer by itself."""
    job = Job()
    weights, stored = {}, 0
    for name, layer in job.linears.items():
        packed, meta = Quantizer.quantize(
            layer.weight.data, nbits=job.bits, group_size=job.group_size, device="cpu", **SETTINGS
        )
        # Packed codes as they lie in memory (3 bits: ten codes in 32), a half-precision scale and zero a group.
        stored += packed.numel() * packed.element_size() * 8
        stored += (meta["scale"].numel() + meta["zero"].numel()) * SCALE_BITS
        weights[name] = Quantizer.dequantize(packed, {**meta, "compute_dtype": torch.float32})
    job.answer("hqq", weights, stored, {"bits": job.bits, "group_size": job.group_size, **SETTINGS})


if __name__ == "__main__":
    main()
