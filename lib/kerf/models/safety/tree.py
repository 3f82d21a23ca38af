"""Files below a model's directory: regular ones, inside it or among the blobs of its hub repository, of bounded size."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kerf.core.errors import printable

# One of them lies at the top of every model, or of an adapter, which is refused by name later.
MODEL_MARKS = ("config.json", "modules.json", "quantize_config.json", "card.json")
ADAPTER_MARKS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
ENTRIES = 10_000  # a model with a hundred checkpoints of its training has some 2,000
READ_WHOLE = (".json", ".txt", ".model", ".md", ".jinja", ".yaml", ".yml")
LARGEST = 100_000_000  # bytes of a file that is read whole; the largest tokenizer.json in use has 35 million
DEVICES = dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), "a device")
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", **DEVICES}
SHOWN = 100  # characters of a text from a directory in a message
OUTSIDE = "a directory that does not reach outside itself; {} "


class Unsafe(Exception):
    """Why a directory is refused: what is accepted instead, in one line. values: untrusted text for the braces of `accepted`; it
    is cut and its control characters are escaped."""

    def __init__(self, accepted: str, *values: object) -> None:
        super().__init__(accepted.format(*(printable(value, SHOWN) for value in values)))


# Path relative to the model's directory, bytes, and what else changes when a file does: its inode and time of modification.
File = tuple[str, int, int, int]


def files(folder: Path) -> tuple[File, ...]:
    """All files of a directory, sorted. Raises Unsafe."""
    root = folder.resolve()
    if not any(os.path.lexists(root / mark) for mark in MODEL_MARKS + ADAPTER_MARKS):
        raise Unsafe("a directory with config.json and *.safetensors; this one is no model")
    try:
        return tuple(sorted(filter(None, (_file(root, path) for path in _walk(root)))))
    except OSError as error:
        accepted = "a directory that can be read ({}: {})"
        raise Unsafe(accepted, error.strerror, error.filename) from None


def _walk(root: Path) -> Iterator[Path]:
    """Everything below `root` that is no directory; no link is followed."""
    folders, count = [str(root)], 0
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                count += 1
                if count > ENTRIES:
                    accepted = "the directory of one model, with at most {} files and folders; this one has more"
                    raise Unsafe(accepted, f"{ENTRIES:,}")
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    yield Path(entry.path)


def _file(root: Path, path: Path) -> File | None:
    """A file; None for a link to a directory inside, whose files have a path of their own."""
    name = path.relative_to(root).as_posix()
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: links in a circle
            raise Unsafe("a directory whose links lead to files; {} leads nowhere", name) from None
        if not target.is_relative_to(root) and target.parent != _blobs(root):
            raise Unsafe(OUTSIDE + "is a link that leaves it", name)
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise Unsafe("a directory of regular files; {} is {}", name, kind)
    if path.suffix in READ_WHOLE and status.st_size > LARGEST:
        accepted = "small files of at most {} MB beside the weights; {} has {} MB"
        raise Unsafe(accepted, LARGEST // 10**6, name, f"{status.st_size // 10**6:,}")
    return name, status.st_size, status.st_ino, status.st_mtime_ns


def _blobs(root: Path) -> Path | None:
    """Folder of the files of a hub repository, if `root` lies in a snapshot of one: models--org--name/snapshots/revision."""
    for parent in root.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent / "blobs"
    return None


def check_inside(value: object, where: str) -> None:
    """Refuse a path, which a file of the model names, that is no text or leaves the directory."""
    is_path = isinstance(value, str) and not value.startswith(("/", "~"))
    if not is_path or ".." in str(value).split("/") or set(str(value)) & set("\\:\0"):
        raise Unsafe(OUTSIDE + "names {}", where, repr(value))
