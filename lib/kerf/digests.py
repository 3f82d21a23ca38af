"""Digests of the files of a folder, and which file is no longer what its digest says."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from kerf.sources import sha256


def read_json(path: Path, constant: Callable[[str], object] | None = None) -> object:
    """Content of a JSON file; constant: as of json.loads. Raises OSError for what is no regular file, ValueError for no JSON."""
    if not path.is_file():  # opening a pipe would wait for ever
        raise OSError(f"{path} is no regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=constant)
    except RecursionError:
        raise ValueError(f"{path} is nested too deep") from None


def entries(folder: Path, but: Iterable[str] = ()) -> dict[str, Path]:
    """Everything below `folder` that is no directory, by its relative name; links and devices included."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()}
    return {name: path for name, path in found.items() if name not in but}


def digests(folder: Path, but: Iterable[str] = ()) -> dict[str, str]:
    """sha256 of every file below `folder`, by its relative name."""
    return {name: sha256(path) for name, path in entries(folder, but).items()}


def differing(path: Path, expected: object) -> str:
    """What is wrong with a file whose sha256 should be `expected`; empty when nothing is."""
    if not path.is_file():
        return "is no regular file" if path.exists() else "is missing"
    try:
        return "" if sha256(path) == expected else "is truncated or edited (sha256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def damage(folder: Path, expected: dict[str, str], but: Iterable[str] = ()) -> str:
    """The first file that is missing, differs or was added, and what is wrong with it; empty when all are as `expected`."""
    for name, digest in expected.items():
        wrong = "became a link" if (folder / name).is_symlink() else differing(folder / name, digest)
        if wrong:
            return f"{name} {wrong}"
    added = next((name for name in entries(folder, but) if name not in expected), "")
    return added and f"{added} was added"
