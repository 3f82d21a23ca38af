"""What a directory is held against before any library opens it: a model is data, and its directory is not trusted.

Nothing here imports a model library, runs or unpickles anything. One concern a file: `tree` (regular files that stay
inside, of bounded size), `parsed` (its JSON), `named_code` (what its JSON would have a library import), `weights`
(safetensors and no pickle), `sizes` (a network no larger than its weights).
"""

from functools import lru_cache
from pathlib import Path

from kerf.errors import refuse
from kerf.safety import named_code, parsed, sizes, tree, weights
from kerf.safety.unsafe import Unsafe


def check_folder(value: str, folder: Path, parameter: str = "model", has_weights: bool = True) -> list[str]:
    """Code that the directory brings along and that is not run: `name (file)` each.

    value: what the user wrote for `parameter`. has_weights: false for a candidate, whose card vouches for its weights.
    Raises Refused, in one line, for what could run code, reach outside the directory or hang.
    """
    try:
        files = tree.files(folder)
        return list(_checked(folder, tuple(files.items()), has_weights))
    except Unsafe as error:
        raise refuse(parameter, value, str(error)) from None


@lru_cache(maxsize=64)
def _checked(folder: Path, files: tuple[tuple[str, tree.Stamp], ...], has_weights: bool) -> tuple[str, ...]:
    """The same for the same stamps of all files, since a run resolves its model many times."""
    names = dict(files)
    documents = parsed.documents(folder, names)
    ignored = named_code.check(documents)
    opened = weights.opened_folders(documents)
    held = weights.check(folder, names, documents, opened) if has_weights else weights.UNKNOWN
    sizes.check(documents, opened, held)
    return tuple(ignored + [f"{name} (a file)" for name in sorted(names) if name.endswith(".py")][: named_code.SHOWN])
