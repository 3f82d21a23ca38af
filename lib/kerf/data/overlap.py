"""Texts that share a run of consecutive words, so that what a model was calibrated on is never what it is measured on."""

import math
from collections.abc import Iterable

from kerf.core.errors import refuse
from kerf.data import segmentation

OVERLAP_WORDS = 12  # consecutive words that two texts must share to count as overlapping

Shingle = tuple[str, ...]  # consecutive words


def without_overlap(candidates: list[str], others: Iterable[str]) -> list[str]:
    """Those `candidates` that contain no 12 consecutive words of one of `others`, nor the whole of a shorter one."""
    # The others may be a hundred times as many, so the candidates are indexed.
    index: dict[int, dict[Shingle, set[int]]] = {}
    dropped: set[int] = set()
    for other in others:
        for shingle in _shingles(other):
            if (size := len(shingle)) not in index:
                index[size] = _numbers(candidates, size)
            dropped |= index[size].get(shingle, set())
    return [text for number, text in enumerate(candidates) if number not in dropped]


def _numbers(texts: list[str], size: int) -> dict[Shingle, set[int]]:
    """The numbers of the texts in which each run of `size` words occurs."""
    numbers: dict[Shingle, set[int]] = {}
    for number, text in enumerate(texts):
        for shingle in _shingles(text, size) if size else ():
            numbers.setdefault(shingle, set()).add(number)
    return numbers


def check_overlap(calibration: list[str], evaluation: list[str]) -> None:
    """Raise InputError for a calibration text of which 12 consecutive words (or all its words) occur in evaluation text."""
    known = _owners(calibration)
    for other in evaluation:
        if text := _shared(other, known):
            accepted = "text that does not overlap the evaluation text; this one does"
            raise refuse("calibration.texts", text, accepted)


def _shingles(text: str, size: int = 0) -> set[Shingle]:
    """All runs of `size` words (by default 12, or their equivalent in characters); of a shorter text, the whole text."""
    words = segmentation.words(text)
    default = math.ceil(OVERLAP_WORDS * (segmentation.letters_per_word(text) or 1))
    size = min(size or default, len(words))
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _owners(texts: Iterable[str]) -> dict[int, dict[Shingle, str]]:
    """The text of every shingle, by the shingle's number of words."""
    found: dict[int, dict[Shingle, str]] = {}
    for text in texts:
        for shingle in _shingles(text):
            found.setdefault(len(shingle), {})[shingle] = text
    found.pop(0, None)
    return found


def _shared(text: str, known: dict[int, dict[Shingle, str]]) -> str | None:
    """One of the `known` texts of which a shingle occurs in `text`."""
    for size, texts in known.items():
        for shingle in _shingles(text, size) & texts.keys():
            return texts[shingle]
    return None
