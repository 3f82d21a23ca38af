"""sha256 of the files of a folder, and which file no longer has the sha256 that was recorded."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from kerf.core.user_files import read_bounded

SETTLED = 0.05  # seconds
LARGEST = 2**30  # bytes of a JSON file


def sha256(path: Path) -> str:
    """Hex digest of a file; read once per process, and again when its status has changed: ctime cannot be set back."""
    status = os.stat(path)
    if time.time() - status.st_ctime < SETTLED:  # the clock of a file system is coarse
        return _sha256.__wrapped__(path)
    return _sha256(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=1024)
def _sha256(path: Path, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, constant: Callable[[str], object] | None = None) -> Any:
    """Content of a JSON file; constant: `parse_constant` of json.loads. Raises OSError for no regular file, ValueError for no JSON."""
    try:
        return json.loads(read_bounded(path, LARGEST).decode(), parse_constant=constant)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def entries(folder: Path, but: Iterable[str] = ()) -> dict[str, Path]:
    """All entries below `folder` but directories, links and devices included, by their relative path."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if name not in but}


def digests(folder: Path, but: Iterable[str] = ()) -> dict[str, str]:
    """sha256 of every file below `folder`, by its relative path."""
    return {name: sha256(path) for name, path in entries(folder, but).items()}


def file_damage(path: Path, expected: object) -> str:
    """What is wrong with a file whose sha256 should be `expected`; empty for an intact file."""
    if not path.is_file():
        return "is no regular file" if path.exists() else "is missing"
    try:
        return "" if sha256(path) == expected else "is truncated or edited (sha256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def damage(folder: Path, expected: dict[str, str], but: Iterable[str] = ()) -> str:
    """The first file that is missing, differs from `expected` or was added, and what is wrong with it; else empty."""
    for name, digest in expected.items():
        path = folder / name
        wrong = "became a link" if path.is_symlink() else file_damage(path, digest)
        if wrong:
            return f"{name} {wrong}"
    return next((f"{name} was added" for name in entries(folder, but) if name not in expected), "")
