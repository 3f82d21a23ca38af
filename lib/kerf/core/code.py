"""The code that a result depends on: some modules, all that they import of Kerf, and what that imports in turn.

Comments and docstrings do not count, nor do charts and the workbench, which change no number.
"""

import ast
import hashlib
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

APART = ("kerf.charts", "kerf.workbench")
ROOT = Path(__file__).parents[1]
IMPORT = re.compile(
    r"^[ \t]*(?:from (kerf[\w.]*) import (\([^)]*\)|[^\n#]+)|import (kerf[\w.]*))", re.M
)


@cache
def digest(roots: tuple[str, ...]) -> str:
    """sha256 of the code of modules and all that they import, and of files; those of Kerf by their place in it."""
    named = {root for root in roots if not root.endswith(".py")}
    files = {ROOT / root for root in roots if root.endswith(".py")}
    files |= set(filter(None, map(_file, closure(frozenset(named)))))
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.name} {_meaning(file)}".encode())
    return total.hexdigest()


def root_of(root: str | Path) -> str:
    """A module's name, or a file: one of Kerf by its place in the package, so that two clones share what they made."""
    place = Path(root)
    inside = isinstance(root, Path) and place.is_relative_to(ROOT)
    return place.relative_to(ROOT).as_posix() if inside else str(root)


@cache
def closure(roots: frozenset[str]) -> frozenset[str]:
    """Names of modules and of all of Kerf's that they import, packages on the way included."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or name.startswith(APART) and name not in roots:
            continue
        found.add(name)
        parent = name.rpartition(".")[0]
        waiting += [parent] if parent.startswith("kerf") else []
        file = _file(name)
        waiting += imported(file.read_text(encoding="utf-8")) if file else []
    return frozenset(found)


def imported(text: str) -> list[str]:
    """Modules of Kerf that Python code imports, at its top or inside functions."""
    found = []
    for package, names, module in IMPORT.findall(text):
        found.append(package or module)
        for each in re.findall(r"(\w+)(?: as \w+)?", re.sub(r"\bas \w+", "", names)):
            found.append(f"{package}.{each}")
    return [name for name in found if _file(name)]


@cache
def _file(name: str) -> Path | None:
    """Where a module stands; None for what is no module."""
    if name.partition(".")[0] == "kerf":
        place = ROOT.joinpath(*name.split(".")[1:])
        options = (
            (place.with_suffix(".py"), place / "__init__.py")
            if name != "kerf"
            else (ROOT / "__init__.py",)
        )
        return next((path for path in options if path.is_file()), None)
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
        return Path(file) if file else None
    found = importlib.util.find_spec(name) if name else None
    return Path(found.origin) if found and found.origin else None


@cache
def _meaning(file: Path) -> str:
    """The syntax tree of a file without docstrings; comments are no part of it."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            del body[0]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
