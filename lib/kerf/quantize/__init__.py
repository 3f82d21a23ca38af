"""Quantization: `grid` (the uniform grid), `rtn`, `gptq` (methods), `packing` (codes to bytes), `stage`."""
