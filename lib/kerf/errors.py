"""The one exception that means "your input, not our code"."""

import difflib
from collections.abc import Iterable


class Refused(ValueError):
    """Bad input, found before heavy work. One line: the parameter, its value, what is accepted."""


def refuse(parameter: str, value: object, accepted: str) -> "Refused":
    """Build the refusal `parameter = value: accepted`; the caller raises it."""
    shown = repr(value)
    line = f"{parameter} = {shown if len(shown) < 120 else shown[:117] + '...'}: {accepted}"
    return Refused(" ".join(line.split()))


def nearest(word: str, known: Iterable[str]) -> str:
    """The accepted words, the closest to `word` first when one is close."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"accepted: {', '.join(known)}"
