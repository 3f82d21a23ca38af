"""The content of the cache, and which artifacts no run can use any more.

The key of an artifact holds the code, the packages and the notebook that made it: once one of them has changed, no run
requests the artifact. Reports and candidates of finished runs are stored elsewhere and stay.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kerf.core import code
from kerf.core.cache import PACKAGES, meta, packages
from kerf.core.digests import sha256
from kerf.core.errors import InputError
from kerf.core.paths import data_folder, shipped


@dataclass(frozen=True)
class Entry:
    """An artifact, its size in bytes, and why no run can use it; empty if a run may."""

    folder: Path
    kind: str
    bytes: int
    unused: str


def survey() -> Iterator[Entry]:
    """All artifacts in the cache, by kind and name."""
    notebooks = {sha256(path) for path in (shipped() / "notebooks").glob("*.ipynb")}
    for folder in sorted((data_folder() / "cache").glob("[!.]*/")):
        size = sum(path.lstat().st_size for path in folder.rglob("*"))
        yield Entry(folder, folder.name.rpartition("-")[0], size, _why_unused(folder, notebooks))


def _why_unused(folder: Path, notebooks: set[str]) -> str:
    try:
        key = meta(folder)["key"]
        if key["code"] != code.digest(tuple(key["roots"])):
            return "made by other code"
    except (InputError, KeyError, TypeError, OSError, ValueError):
        return "damaged, or of an earlier version of Kerf"
    if any(key["packages"].get(name) != packages().get(name) for name in PACKAGES):
        return "made with other packages"
    if key.get("notebook") not in {None, *notebooks}:
        return "of a notebook that has changed"
    return ""


def clean(dry_run: bool) -> Iterator[str]:
    """Remove the artifacts that no run can use; yields number and size of artifacts by kind, and of unused ones by reason."""
    entries = list(survey())
    for kind in sorted({entry.kind for entry in entries}):
        chosen = [entry for entry in entries if entry.kind == kind]
        yield f"{kind:12} {len(chosen):5} {_megabytes(chosen):10.1f} MB"
    unused = [entry for entry in entries if entry.unused]
    for reason in sorted({entry.unused for entry in unused}):
        chosen = [entry for entry in unused if entry.unused == reason]
        yield f"{reason}: {len(chosen)}, {_megabytes(chosen):.1f} MB"
    for entry in [] if dry_run else unused:
        shutil.rmtree(entry.folder, ignore_errors=True)
    done = "would be removed; nothing was" if dry_run else "removed"
    sizes = f"{_megabytes(unused):.1f} of {_megabytes(entries):.1f} MB"
    yield f"{len(unused)} of {len(entries)} artifacts {done}, {sizes}"


def _megabytes(entries: list[Entry]) -> float:
    return sum(entry.bytes for entry in entries) / 1e6
