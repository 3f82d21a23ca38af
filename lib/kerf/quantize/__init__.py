"""Quantization methods, one file each, and the step that applies them layer by layer."""
