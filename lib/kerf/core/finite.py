"""NaN or infinity in a model's output is an error where it arises, never a result."""

from collections.abc import Sequence

import numpy as np


def check_finite(rows: np.ndarray, inputs: Sequence, what: str = "the model") -> None:
    """Raise ValueError that names the first of `inputs` (texts or pairs) whose row of `rows`, (inputs, ...), is not finite."""
    finite = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
    if not finite.all():
        index = int(np.argmin(finite))
        shown = " ".join(repr(inputs[index]).split())[:80]
        count = f"{(~finite).sum()} of {len(finite)} texts, first for number {index}: {shown}"
        raise ValueError(f"{what} gives NaN or infinity for {count}")
