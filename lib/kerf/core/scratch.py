"""Temporary folders that a later process may remove once the process that made them has ended.

A process locks (flock) its folder. The system releases the lock when the process ends, so an unlocked folder is unused.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "kerf-scratch-"  # of folders in the system's temporary folder


@contextmanager
def scratch(prefix: str = PREFIX, parent: Path | None = None) -> Iterator[Path]:
    """A new folder in `parent` (default: the system's temporary folder); removed at the end, unless it was renamed."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # on a file system without locks `sweep` removes nothing either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # otherwise it was swept before it was locked
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path, *patterns: str) -> None:
    """Remove the folders below `parent` that match one of `patterns` and that no living process has locked."""
    for folder in (folder for pattern in patterns for folder in parent.glob(pattern)):
        with suppress(OSError):  # no folder, another user's, or locked
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
