"""A run: its stages, the kernels that execute them, and results.json."""
