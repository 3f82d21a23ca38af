"""Quantized and pruned tensors: grids, masks, packed codes, and how they are stored."""
