"""Atomic writes: a file is written under another name and renamed, so that readers see the old or the new one, whole."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kerf.core.errors import escaped


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` at the end; after an error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_page(path: Path, text: str) -> Path:
    """Write text that people open, as UTF-8 with control characters but line ends and tabs as escapes."""
    text = re.sub(r"[^\n\t]+", lambda match: escaped(match[0]), text)
    with aside(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: object) -> None:
    """Write JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    with aside(path) as part:
        part.write_text(json.dumps(value, indent=1, allow_nan=False))


def copy(source: Path, target: Path) -> None:
    """Copy a file."""
    with aside(target) as part:
        shutil.copyfile(source, part)
