"""Answers are numbers: NaN or infinity is an error where it arises, never a result."""

from collections.abc import Sequence

import numpy as np


def check_finite(rows: np.ndarray, asked: Sequence, what: str = "the model") -> None:
    """Raise ValueError naming the first of `asked` (texts or pairs) whose row of `rows`, (texts, ...), holds NaN or infinity."""
    good = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
    if not good.all():
        place = int(np.argmin(good))
        shown = " ".join(repr(asked[place]).split())[:80]
        raise ValueError(
            f"{what} gives NaN or infinity for {(~good).sum()} of {len(good)} texts, first for number {place}: {shown}"
        )
