"""The files below a model's directory: regular ones, inside it or among the blobs of its hub repository, of bounded size."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from kerf.models.safety.unsafe import Unsafe, shown

MARKS = (
    "config.json",
    "modules.json",
    "quantize_config.json",
    "card.json",  # one of them lies at the top of every model,
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)  # or of an adapter, which is refused by name
ENTRIES = 10_000  # a model with a hundred checkpoints of its training has some 2,000
READ_WHOLE = (".json", ".txt", ".model", ".md", ".jinja", ".yaml", ".yml")
LARGEST = 100_000_000  # bytes of a file that is read whole; the largest tokenizer.json in use has 35 million
KINDS = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


class Stamp(NamedTuple):
    """What changes when a file does."""

    inode: int
    bytes: int
    modified: int


def files(folder: Path) -> dict[str, Stamp]:
    """Stamps of all files by their path in the folder, sorted. Raises Unsafe."""
    root = folder.resolve()
    if not any(os.path.lexists(root / mark) for mark in MARKS):
        raise Unsafe("a directory with config.json and *.safetensors; this one is no model")
    found, waiting, entries = {}, [root], 0
    try:
        while waiting:
            with os.scandir(waiting.pop()) as listed:
                for entry in listed:
                    entries += 1
                    if entries > ENTRIES:
                        raise Unsafe(
                            f"the directory of one model, with at most {ENTRIES:,} files and folders; this one has more"
                        )
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif (stamp := _stamp(root, Path(entry.path))) is not None:
                        found[Path(entry.path).relative_to(root).as_posix()] = stamp
    except OSError as error:
        raise Unsafe(
            f"a directory that can be read ({shown(error.strerror)}: {shown(error.filename)})"
        ) from None
    return dict(sorted(found.items()))


def _stamp(root: Path, path: Path) -> Stamp | None:
    """Of a file; None for a link to a directory inside, whose files are found in their own place."""
    name = shown(path.relative_to(root))
    if path.is_symlink():
        _check_link(root, path, name)
    about = path.stat()
    if stat.S_ISDIR(about.st_mode):
        return None
    if not stat.S_ISREG(about.st_mode):
        kind = next((kind for test, kind in KINDS.items() if test(about.st_mode)), "something else")
        raise Unsafe(f"a directory of regular files; {name} is {kind}")
    if path.suffix in READ_WHOLE and about.st_size > LARGEST:
        raise Unsafe(
            f"small files of at most {LARGEST // 10**6} MB beside the weights; {name} has {about.st_size // 10**6:,} MB"
        )
    return Stamp(about.st_ino, about.st_size, about.st_mtime_ns)


def _check_link(root: Path, path: Path, name: str) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        raise Unsafe(f"a directory whose links lead to files; {name} leads nowhere") from None
    if not target.is_relative_to(root) and target.parent != _blobs(root):
        raise Unsafe(
            f"a directory that does not reach outside itself; {name} is a link that leaves it"
        )


def _blobs(root: Path) -> Path | None:
    """Where the files of a hub repository lie, if the directory is a snapshot of one: models--org--name/snapshots/revision."""
    for parent in root.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent / "blobs"
    return None


def inside(value: object, what: str) -> str:
    """A path that a file of the model names, if it stays below the directory. Raises Unsafe for another one."""
    if (
        not isinstance(value, str)
        or value.startswith(("/", "~"))
        or ".." in value.split("/")
        or set(value) & set("\\:\0")
    ):
        raise Unsafe(
            f"a directory that does not reach outside itself; {what} names {shown(repr(value))}"
        )
    return value
