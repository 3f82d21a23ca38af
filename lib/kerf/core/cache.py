"""A cache of finished work by content: the same inputs, code and packages give the same folder.

An artifact is a folder `data/cache/<kind>-<key>/`; its `meta.json` holds its key, times, and the sha256 of every file and of
itself. It is written aside and renamed. It is verified before use: if damaged, it is reported, removed and made again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from kerf.core import code as sources
from kerf.core import device, digests
from kerf.core.atomic import write_json
from kerf.core.errors import InputError
from kerf.core.paths import data_folder
from kerf.core.scratch import scratch

META = "meta.json"
HANDOVER = "handover.json"
NOTICE = "kerf: cache: "  # the prefix of a line on standard error that names a damaged artifact
PARTS = {"kind", "key", "run", "started", "finished", "seconds", "result", "files"}  # of meta.json
# Packages whose version can change a number.
PACKAGES: tuple[str, ...] = ("torch", "transformers", "sentence-transformers", "tokenizers")
PACKAGES += ("numpy", "scipy", "pyarrow", "openvino", "onnxruntime")


def artifact(
    kind: str,
    key: dict,
    make: Callable[[Path], dict | None],
    code: Iterable[str | Path] = (),
    also: Iterable[str] = (),
    anywhere: bool = False,
) -> Path:
    """Folder of an artifact. `make(folder)` fills it unless the cache has it, finished after the time KERF_FRESH (ISO 8601).

    key: all that the content depends on, as JSON; code, versions of `PACKAGES` and (unless `anywhere`) the machine are added.
    make: returns the "result" of meta.json. The modules or files whose code counts are `code`, else its module and `also`.
    """
    roots = tuple(map(sources.root_of, code)) or (make.__module__, *also)
    key = {**key, "roots": roots, "code": sources.digest(roots), "packages": packages()}
    key |= {} if anywhere else {"machine": machine()}
    key = json.loads(json.dumps(key))  # as meta.json will hold it
    folder = data_folder() / "cache" / _name(kind, key)
    if _is_valid(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch(f".{kind}-", folder.parent) as aside:
        run = os.environ.get("KERF_RUN", "by hand")
        content: dict[str, Any] = {"kind": kind, "key": key, "run": run, "started": now()}
        clock = time.perf_counter()
        content["result"] = make(aside) or {}
        content |= {"finished": now(), "seconds": time.perf_counter() - clock}
        content = json.loads(json.dumps(content | {"files": digests.digests(aside)}))
        write_json(aside / META, {**content, "sha256": digest(content)})
        if not _is_valid(folder):  # else another process made it meanwhile and may be reading it
            replace_folder(aside, folder)
    return folder


def _name(kind: str, key: dict) -> str:
    return f"{kind}-{digest(key)[:20]}"


def _is_valid(folder: Path, stage: Path | None = None) -> bool:
    """Whether an artifact exists, is intact and fresh; a damaged one is removed, and with it the `stage` that published it."""
    if not stage and not os.path.lexists(folder):
        return False
    inode = _inode(folder)
    try:
        content = meta(folder)
        if content["finished"] < os.environ.get("KERF_FRESH", ""):
            return stage is not None
        if _name(content["kind"], content["key"]) != folder.name:
            raise InputError(f"{META} is that of another artifact")
        if damage := digests.damage(folder, content["files"], [META]):
            raise InputError(damage)
        return HANDOVER not in content["files"] or _is_valid(published(folder), stage=folder)
    except InputError as error:
        if _inode(folder) != inode:  # another process has replaced it meanwhile
            return _is_valid(folder, stage)
        damage = str(error).removeprefix(f"{folder}/")
    print(f"{NOTICE}{folder.name}: {damage}; it is made again", file=sys.stderr)
    for damaged in {folder, stage or folder}:
        with scratch(".old-", folder.parent) as old, contextlib.suppress(FileNotFoundError):
            os.rename(damaged, old / damaged.name)
    return False


def meta(folder: Path) -> dict:
    """Content of an artifact's meta.json. Raises InputError if that file is missing or was edited."""
    path = folder / META
    try:
        if path.is_symlink():
            raise OSError
        content = digests.read_json(path)
        intact = content.pop("sha256") == digest(content) and content.keys() >= PARTS
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        raise InputError(f"{path} is missing or damaged") from None
    if not intact:
        raise InputError(f"{path} was edited after it was written (sha256 differs)")
    return content


def _inode(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return os.lstat(folder).st_ino
    return None


def publish(folder: Path) -> None:
    """Write the path of a notebook's result to the file KERF_HANDOVER, if set: the executed notebook does not hold that path."""
    if "KERF_HANDOVER" in os.environ:
        write_json(Path(os.environ["KERF_HANDOVER"]), {"artifact": str(folder)})


def published(folder: Path) -> Path:
    """The artifact that a notebook published, in the same cache as `folder`. Raises InputError if it published none."""
    try:
        return folder.parent / Path(digests.read_json(folder / HANDOVER)["artifact"]).name
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"{folder / HANDOVER} is missing or damaged") from None


def replace_folder(new: Path, target: Path) -> None:
    """Replace `target` by `new`; no reader ever sees a partial folder."""
    os.chmod(new, 0o755)
    with scratch(".old-", target.parent) as old:
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, old / target.name)
        os.rename(new, target)


def now() -> str:
    """UTC as ISO 8601 with microseconds; such strings sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def digest(value: object) -> str:
    """sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@cache
def packages() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@cache
def machine() -> dict:
    """Processor, threads and device: floating-point sums depend on them, and timings hold for one machine only."""
    path = Path("/proc/cpuinfo")
    text = path.read_text().partition("\n\n")[0] if path.is_file() else ""  # of the first core
    fields = dict(re.findall(r"^(.+?)\s*: (.*?)[ \t]*$", text, re.M))
    flags = re.findall(r"(?<!\S)(?:avx|amx|fma|sse4)\S*", fields.get("flags", ""))
    model = fields.get("model name") or platform.processor() or platform.machine()
    name = device.current()
    accelerator = {} if name == "cpu" else {"device": name}
    processor = {"node": platform.node(), "model": model, "flags": sorted(flags)}
    return {**processor, "threads": threads(), **accelerator}


def threads() -> int:
    """Threads of heavy work: OMP_NUM_THREADS, else the cores that this process may use."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) else len(os.sched_getaffinity(0))
