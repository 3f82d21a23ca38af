"""Digests of the files of a folder, and which file is no longer what its digest says."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

SETTLED = 0.05  # seconds; file systems tell times apart that lie a few milliseconds from each other


def sha256(path: Path) -> str:
    """Hex digest of a file; read once a process, and again when anything about the file has changed since.

    The time of change of its inode, unlike that of its content, cannot be set back. The clock of a file system is coarse, so
    the digest of a file that has only just changed is not kept.
    """
    status = os.stat(path)
    if time.time() - status.st_ctime < SETTLED:
        return _sha256.__wrapped__(path)
    return _sha256(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=1024)
def _sha256(path: Path, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }
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
        wrong = (
            "became a link" if (folder / name).is_symlink() else differing(folder / name, digest)
        )
        if wrong:
            return f"{name} {wrong}"
    added = next((name for name in entries(folder, but) if name not in expected), "")
    return added and f"{added} was added"
