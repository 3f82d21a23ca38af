"""What a directory is held against before any library opens it: a model is data, and its directory is not trusted.

Nothing here imports a model library, runs or unpickles anything. One concern a file: `tree` (regular files that stay
inside, of bounded size), `parsed` (its JSON), `named_code` (what its JSON would have a library import), `weights`
(safetensors and no pickle), `sizes` (a network no larger than its weights).
"""

from functools import lru_cache
from pathlib import Path

from kerf.core.errors import refuse
from kerf.models.safety import named_code, parsed, sizes, tree, weights
from kerf.models.safety.unsafe import Unsafe


def check_folder(
    value: str, folder: Path, parameter: str = "model", has_weights: bool = True
) -> list[str]:
    """Code that the directory brings along and that is not run: `name (file)` each.

    value: what the user wrote for `parameter`. has_weights: false for a candidate, whose card vouches for its weights.
    Raises InputError, in one line, for what could run code, reach outside the directory or hang.
    """
    try:
        return list(_checked(folder, _files(folder), has_weights))
    except Unsafe as error:
        raise refuse(parameter, value, str(error)) from None


def check_files(value: str, folder: Path) -> None:
    """Refuse a directory whose JSON cannot be read safely, or names code: the part of `check_folder` after which others may read it."""
    try:
        named_code.check(_documents(folder, _files(folder)))
    except Unsafe as error:
        raise refuse("model", value, str(error)) from None


def _files(folder: Path) -> tuple[tuple[str, tree.Stamp], ...]:
    return tuple(tree.files(folder).items())


@lru_cache(maxsize=8)
def _documents(folder: Path, files: tuple[tuple[str, tree.Stamp], ...]) -> dict[str, object]:
    return parsed.documents(folder, dict(files))


@lru_cache(maxsize=64)
def _checked(
    folder: Path, files: tuple[tuple[str, tree.Stamp], ...], has_weights: bool
) -> tuple[str, ...]:
    """The same for the same stamps of all files, since a run resolves its model many times."""
    names = dict(files)
    documents = _documents(folder, files)
    ignored = named_code.check(documents)
    opened = weights.opened_folders(documents)
    held = weights.check(folder, names, documents, opened) if has_weights else weights.UNKNOWN
    sizes.check(documents, opened, held)
    return tuple(
        ignored
        + [f"{name} (a file)" for name in sorted(names) if name.endswith(".py")][: named_code.SHOWN]
    )
