"""Checks of a directory before any library opens it: a model is data, and its directory is not trusted.

Nothing here imports a model library, runs or unpickles anything. One concern a file: `tree` (regular files that stay inside, of
bounded size), `documents` (its JSON, and code that it names), `weights` (safetensors, and a network no larger than they are).
"""

from functools import lru_cache
from pathlib import Path

from kerf.core.errors import refuse
from kerf.models.safety import documents, tree, weights
from kerf.models.safety.tree import Unsafe


def check_folder(
    value: str, folder: Path, parameter: str = "model", has_weights: bool = True
) -> list[str]:
    """Code that the directory brings along and that is not run: `name (file)` each.

    value: what the user wrote for `parameter`. has_weights: false for a candidate, whose manifest vouches for its weights.
    Raises InputError, in one line, for what could run code, reach outside the directory or hang.
    """
    try:
        return list(_checked(folder, tree.files(folder), has_weights))
    except Unsafe as error:
        raise refuse(parameter, value, str(error)) from None


@lru_cache(maxsize=64)  # a run resolves its model many times
def _checked(folder: Path, files: tuple[tree.File, ...], has_weights: bool) -> list[str]:
    sizes = {name: size for name, size, *_ in files}
    contents = documents.read(folder, sizes)
    ignored = documents.ignored_code(contents)
    weights.check(folder, sizes, contents, has_weights)
    scripts = [f"{name} (a file)" for name in sizes if name.endswith(".py")]
    return ignored + scripts[: documents.LISTED]
