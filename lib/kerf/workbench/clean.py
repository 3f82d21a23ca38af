"""What the cache holds, and what of it nothing can use any more.

An artifact is served to whoever asks with the same key. Its key holds the code, the packages and the notebook that it was made
by: once one of them has changed, no run asks for it again. Reports and candidates of finished runs lie elsewhere and stay.
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
    """An artifact, its size in bytes, and why nothing can use it; empty where something may."""

    folder: Path
    kind: str
    bytes: int
    unused: str


def survey() -> list[Entry]:
    """Everything in the cache, by kind and name."""
    notebooks = {sha256(path) for path in (shipped() / "notebooks").glob("*.ipynb")}
    folders = (data_folder() / "cache").glob("[!.]*/")
    return sorted((_entry(folder, notebooks) for folder in folders), key=lambda each: each.folder)


def _entry(folder: Path, notebooks: set[str]) -> Entry:
    kind = folder.name.rpartition("-")[0]
    size = sum(path.lstat().st_size for path in folder.rglob("*"))
    return Entry(folder, kind, size, _why_unused(folder, notebooks))


def _why_unused(folder: Path, notebooks: set[str]) -> str:
    try:
        key = meta(folder)["key"]
        known = key["code"] == code.digest(tuple(key["roots"]))
    except (InputError, KeyError, TypeError, OSError, ValueError):
        return "damaged, or of an earlier version of Kerf"
    if not known:
        return "made by other code"
    made, now = (
        {name: each.get(name) for name in PACKAGES} for each in (key["packages"], packages())
    )
    if made != now:
        return "made with other packages"
    return (
        "of a notebook that has changed"
        if key.get("notebook", None) not in {None, *notebooks}
        else ""
    )


def remove(entries: list[Entry]) -> None:
    """Remove what nothing can use."""
    for each in entries:
        if each.unused:
            shutil.rmtree(each.folder, ignore_errors=True)


def lines(entries: list[Entry], dry_run: bool) -> Iterator[str]:
    """What there is by kind, and what goes."""
    for kind in sorted({each.kind for each in entries}):
        chosen = [each for each in entries if each.kind == kind]
        yield f"{kind:12} {len(chosen):5} {_megabytes(chosen):10.1f} MB"
    unused = [each for each in entries if each.unused]
    for why in sorted({each.unused for each in unused}):
        chosen = [each for each in unused if each.unused == why]
        yield f"{why}: {len(chosen)}, {_megabytes(chosen):.1f} MB"
    done = "would be removed; nothing was" if dry_run else "removed"
    yield f"{len(unused)} of {len(entries)} artifacts {done}, {_megabytes(unused):.1f} of {_megabytes(entries):.1f} MB"


def _megabytes(entries: list[Entry]) -> float:
    return sum(each.bytes for each in entries) / 1e6
