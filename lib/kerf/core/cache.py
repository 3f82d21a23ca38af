"""Finished work, kept by content: the same inputs, code and packages give the same folder back.

An artifact is a folder `data/cache/<kind>-<key>/` with a `meta.json` that says what it was made from,
when, and how long it took, with the sha256 of every file and of itself. It appears whole or not at all (written aside, then
renamed), so a killed process leaves nothing that a later one could mistake for finished work. Nothing is served
unseen: what is not as it was written is named on standard error, removed, and made again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from kerf.core import code as sources
from kerf.core import device, digests
from kerf.core.atomic import write_json
from kerf.core.errors import InputError
from kerf.core.paths import data_folder
from kerf.core.scratch import scratch

META = "meta.json"
HANDOVER = "handover.json"
NOTICE = "kerf: cache: "  # how a line on standard error begins that names what was damaged
PARTS = {"kind", "key", "run", "started", "finished", "seconds", "result", "files"}  # of meta.json

# Packages that can change a number.
PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "pyarrow",
    "openvino",
    "onnxruntime",
)


def artifact(
    kind: str,
    key: dict,
    make: Callable[[Path], dict | None],
    code: Iterable[str | Path] = (),
    also: Iterable[str] = (),
    anywhere: bool = False,
) -> Path:
    """Folder of the artifact, made by `make(folder)` unless it is there.

    `key`: everything the content depends on, as JSON. The module of `make` and all that it imports are part of the key
    (`kerf.core.code`), and `also`: modules that it finds by a registry; `code`: modules or files instead of all of these.
    `anywhere`: reuse results made on another CPU or thread count; for a model, which
    has to be one and the same wherever it is measured. What `make` returns is kept in meta.json under "result". With
    KERF_FRESH set to a time (ISO 8601), artifacts finished before it are made again.
    """
    roots = tuple(map(sources.root_of, code)) or (make.__module__, *also)
    key = {**key, "roots": roots, "code": sources.digest(roots), "packages": packages()}
    key |= {} if anywhere else {"machine": machine()}
    key = json.loads(json.dumps(key))  # as meta.json will have it
    folder = data_folder() / "cache" / _name(kind, key)
    if _is_made(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch(f".{kind}-", folder.parent) as aside:
        started, clock = now(), time.perf_counter()
        result = make(aside)
        run = os.environ.get("KERF_RUN", "by hand")
        stamp = {"kind": kind, "key": key, "run": run, "started": started, "finished": now()}
        stamp |= {
            "seconds": time.perf_counter() - clock,
            "result": result or {},
            "files": digests.digests(aside),
        }
        stamp = json.loads(json.dumps(stamp))
        write_json(aside / META, {**stamp, "sha256": digest(stamp)})
        if not _is_made(folder):  # by another process meanwhile, which may be reading it
            replace_folder(aside, folder)
    return folder


def _name(kind: str, key: dict) -> str:
    return f"{kind}-{digest(key)[:20]}"


def _is_made(folder: Path) -> bool:
    """Whether the artifact is there, whole and fresh enough. A damaged one is named on standard error and removed."""
    if not os.path.lexists(folder):
        return False
    found = _damage(folder)
    if not found:
        with contextlib.suppress(InputError):  # another process has just moved it out of the way
            return _is_fresh(folder)
        return False
    where, inode, wrong = found
    if _inode(where) != inode:  # another process has put a new one in its place meanwhile
        return _is_made(folder)
    print(f"{NOTICE}{where.name}: {wrong}; it is made again", file=sys.stderr)
    for each in {where, folder}:
        _discard(each)
    return False


def _is_fresh(folder: Path) -> bool:
    return meta(folder)["finished"] >= os.environ.get("KERF_FRESH", "")


def _damage(folder: Path) -> tuple[Path, int | None, str] | None:
    """Which artifact is not as it was written, its inode, and what is wrong: this one, or the one that it handed over."""
    inode = _inode(folder)
    try:
        said = meta(folder)
        if not _is_fresh(folder):
            return None  # it is not served in any case
        wrong = (
            "is that of another artifact" if _name(said["kind"], said["key"]) != folder.name else ""
        )
        wrong = wrong and f"{META} {wrong}" or digests.damage(folder, said["files"], [META])
        handed = None if wrong or HANDOVER not in said["files"] else published(folder)
    except InputError as refusal:
        wrong = str(refusal).removeprefix(f"{folder}/")
    if wrong:
        return folder, inode, wrong
    return _damage(handed) if handed else None


def _inode(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return os.lstat(folder).st_ino
    return None


def _discard(folder: Path) -> None:
    with scratch(".old-", folder.parent) as old, contextlib.suppress(FileNotFoundError):
        os.rename(folder, old / folder.name)


def meta(folder: Path) -> dict:
    """What an artifact says of itself. Raises InputError when its meta.json is missing or was edited."""
    path = folder / META
    try:
        if path.is_symlink():
            raise OSError
        said = digests.read_json(path)
        own = said.pop("sha256")
        whole = own == digest(said) and said.keys() >= PARTS
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        raise InputError(f"{path} is missing or damaged") from None
    if not whole:
        raise InputError(f"{path} was edited after it was written (sha256 differs)")
    return said


def publish(folder: Path) -> None:
    """Note where a notebook's result lies in the file KERF_HANDOVER, for the runner; by hand, do nothing.

    An environment variable and no parameter, since executed notebooks are sent to others.
    """
    if "KERF_HANDOVER" in os.environ:
        write_json(Path(os.environ["KERF_HANDOVER"]), {"artifact": str(folder)})


def published(folder: Path) -> Path:
    """The artifact that a notebook handed over, in the same cache. Raises InputError when it handed over none."""
    try:
        return folder.parent / Path(digests.read_json(folder / HANDOVER)["artifact"]).name
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"{folder / HANDOVER} is missing or damaged") from None


def replace_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`; at every moment one of the two is whole."""
    os.chmod(new, 0o755)
    with scratch(".old-", target.parent) as old:
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, old / target.name)
        os.rename(new, target)


def now() -> str:
    """UTC, ISO 8601 with microseconds; strings of it sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def digest(value: object) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@cache
def packages() -> dict[str, str]:
    """Installed versions of the packages that can change a number; a kernel's library may be missing."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@cache
def machine() -> dict:
    """Processor, threads and device: floating-point sums depend on them, and timings are of one machine only."""
    model, flags = platform.processor() or platform.machine(), []
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            if name.strip() == "flags":
                flags = sorted(
                    f for f in value.split() if f.startswith(("avx", "amx", "fma", "sse4"))
                )
                break
    found = {"node": platform.node(), "model": model, "flags": flags, "threads": threads()}
    return found if device.current() == "cpu" else {**found, "device": device.current()}


def threads() -> int:
    """Threads of the heavy work: OMP_NUM_THREADS, else the cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))
