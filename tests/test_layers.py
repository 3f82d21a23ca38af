"""The house: its layers, its style, and no test that leans on another."""

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
