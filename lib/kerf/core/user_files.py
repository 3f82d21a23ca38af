"""Files that a user named: each is looked at before it is opened, and bounded before it is read."""

import os
import stat
import tempfile
from pathlib import Path

from kerf.core.errors import CONTROL, refuse

SMALL = 2**20  # bytes of a file that people write by hand


def given_path(text: str | os.PathLike) -> Path | None:
    """The path that a user wrote, with ~ expanded; there need not be anything.

    None for what can be no path here: nothing, control characters, too long a name, an unknown user's home, a folder without access.
    """
    text = os.fspath(text)
    if not text.strip() or CONTROL.search(text):
        return None
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError):
        return None
    return path


def read_text(parameter: str, path: Path, most: int = SMALL) -> str:
    """Text of a regular file of at most `most` bytes. Raises InputError for every other, and for one that is not UTF-8.

    A pipe or a device is never waited for.
    """
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise refuse(parameter, str(path), "a regular file")
            # Room is taken for what is asked, and some files say that they are empty and are not.
            content = (
                file.read(min(most, max(status.st_size, SMALL)) + 1)
                if status.st_size <= most
                else None
            )
    except OSError as error:
        raise refuse(parameter, str(path), f"a file that can be read ({error.strerror})") from None
    if content is None or len(content) > most:
        raise refuse(parameter, str(path), f"a file of at most {most} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise refuse(parameter, str(path), "a UTF-8 text file") from None


def check_writable(parameter: str, folder: Path) -> None:
    """Make `folder` where there is none. Raises InputError where no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise refuse(
            parameter, str(folder), f"a directory that can be written ({error.strerror})"
        ) from None
