"""Checkpoints of other tools: read and written."""
