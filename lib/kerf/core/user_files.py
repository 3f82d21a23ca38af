"""Files and folders that a user names: checked before they are opened, and read up to a limit."""

import os
import stat
import tempfile
from pathlib import Path

from kerf.core.errors import CONTROL, refuse

SMALL = 2**20  # bytes of a file that people write by hand


def given_path(text: str | os.PathLike) -> Path | None:
    """The path that a user wrote, with ~ expanded; it need not exist.

    None for text that cannot be a path: empty, control characters, too long, an unknown user's home, no access.
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


def read_bounded(path: Path, most: int) -> bytes:
    """Content of a regular file of at most `most` bytes. Raises OSError for any other; a pipe or a device is not waited for."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(None, "it is no regular file")
        # read() allocates what it is asked for. Files of /proc report a size of 0 and are not empty.
        content = file.read(min(most, max(status.st_size, SMALL)) + 1)
    if max(status.st_size, len(content)) > most:
        raise OSError(None, f"it has more than {most} bytes")
    return content


def read_text(parameter: str, path: Path, most: int = SMALL) -> str:
    """Text of a regular UTF-8 file of at most `most` bytes. Raises InputError for any other file."""
    try:
        return read_bounded(path, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise refuse(parameter, str(path), "a UTF-8 text file") from None
    except OSError as error:
        accepted = f"a file of at most {most} bytes that can be read ({error.strerror})"
        raise refuse(parameter, str(path), accepted) from None


def check_writable(parameter: str, folder: Path) -> None:
    """Create `folder` if it does not exist. Raises InputError if no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        accepted = f"a directory that can be written ({error.strerror})"
        raise refuse(parameter, str(folder), accepted) from None
