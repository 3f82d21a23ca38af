"""Pruning: which weights or units are removed, and how the remaining weights are updated to compensate."""
