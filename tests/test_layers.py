"""The house: its layers, its style, and no test that leans on another."""

import ast
import re
import subprocess
import sys

import pytest

from kerf.core.paths import root


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check"],
        ["ruff", "format", "--check"],
        ["lint-imports", "--no-cache", "--config", "lib/pyproject.toml"],
    ],
    ids=["style", "format", "layers"],
)
def test_the_house_is_in_order(command):
    program = f"{sys.prefix}/bin/{command[0]}"
    done = subprocess.run(
        [program, *command[1:]], cwd=root(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_no_test_imports_another():
    found = [
        path.name
        for path in (root() / "tests").glob("*.py")
        if re.search(r"^(from|import) test_", path.read_text(), re.M)
    ]
    assert not found


def unannotated(function: ast.FunctionDef) -> list[str]:
    """Arguments of a function without a type, and "return" where its result has none."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [each for each in (arguments.vararg, arguments.kwarg) if each]
    names = [each.arg for each in every if each.annotation is None]
    returns = [] if function.returns or function.name.startswith("__") else ["return"]
    return [name for name in names if name not in ("self", "cls")] + returns


def test_public_functions_are_annotated():
    bare = []
    for path in sorted((root() / "lib/kerf").rglob("*.py")):
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in [*tree.body, *(member for each in classes for member in each.body)]:
            public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if public and (missing := unannotated(node)):
                bare.append(f"{path.relative_to(root())}:{node.lineno} {node.name}: {missing}")
    assert not bare


def test_the_checker_of_annotations_sees_what_is_missing():
    bare = ast.parse("def f(a, b: int, *c, d=1, **e): pass").body[0]
    assert unannotated(bare) == ["a", "d", "c", "e", "return"]
    assert unannotated(ast.parse("def f(self, a: int) -> None: pass").body[0]) == []
