"""The code that a result depends on: some modules and all modules of Kerf that they import, directly or not.

Comments and docstrings do not count, nor do charts and the workbench, which change no number.
"""

import ast
import hashlib
import importlib.util
import sys
from functools import cache
from pathlib import Path

APART = ("kerf.charts", "kerf.workbench")
ROOT = Path(__file__).parents[1]


@cache
def digest(roots: tuple[str, ...]) -> str:
    """sha256 of the code of files (Kerf's relative to the package) and of modules with all modules of Kerf that they import."""
    files = {ROOT / root for root in roots if root.endswith(".py")}
    modules: set[str] = set()
    waiting = [root for root in roots if not root.endswith(".py")]
    while waiting:
        name = waiting.pop()
        if name in modules or name.startswith(APART) and name not in roots:
            continue
        modules.add(name)
        package = name.rpartition(".")[0]
        waiting += [package] if package.startswith("kerf") else []
        if file := _file(name):
            files.add(file)
            waiting += imported(file.read_text(encoding="utf-8"))
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.name} {_code(file)}".encode())
    return total.hexdigest()


def root_of(root: str | Path) -> str:
    """The name of a module or the path of a file; relative to the package for a file of Kerf, so that clones share results."""
    inside = isinstance(root, Path) and root.is_relative_to(ROOT)
    return Path(root).relative_to(ROOT).as_posix() if inside else str(root)


def imported(text: str) -> list[str]:
    """Modules of Kerf that Python code imports, at its top or inside functions."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.partition(".")[0] == "kerf" and _file(name)]


@cache
def _file(name: str) -> Path | None:
    """The file of a module; None for a name that is no module."""
    if name.partition(".")[0] == "kerf":  # found without importing the packages that hold it
        path = ROOT.joinpath(*name.split(".")[1:])
        options = (path / "__init__.py", path.with_suffix(".py"))
        return next((path for path in options if path.is_file()), None)
    origin = getattr(sys.modules.get(name), "__file__", None)
    if name and name not in sys.modules and (spec := importlib.util.find_spec(name)):
        origin = spec.origin
    return Path(origin) if origin else None


@cache
def _code(file: Path) -> str:
    """The syntax tree of a file without docstrings; it holds no comments."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant(value=str())), *_] as body:
                del body[0]
    return ast.dump(tree)
