"""The one way to write a file that others may read: aside, and then renamed, so that it is the old one or the new one, whole."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kerf.core.errors import of_page


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A file to write into, which takes the place of `path` at the end, and is gone after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_page(path: Path, text: str) -> Path:
    """Write text that people open: control characters as escapes, UTF-8."""
    with aside(path) as part:
        part.write_text(of_page(text), encoding="utf-8")
    return path


def write_json(path: Path, value: object) -> None:
    """Write JSON; NaN is an error, since JSON has none."""
    with aside(path) as part:
        part.write_text(json.dumps(value, indent=1, allow_nan=False))


def copy(source: Path, target: Path) -> None:
    """Copy a file."""
    with aside(target) as part:
        shutil.copyfile(source, part)
