"""Reconstruct: learn a compressed network's grids block by block against the float model."""
