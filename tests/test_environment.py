"""environment.yml is the one source of truth: what is installed is what it pins."""

import importlib.metadata
import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kerf.core.paths import root


def pins() -> dict[str, str]:
    text = (root() / "environment.yml").read_text().partition("- pip:")[2]
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def project() -> dict:
    return tomllib.loads((root() / "lib" / "pyproject.toml").read_text())["project"]


def extras() -> dict[str, str]:
    tested = {
        name: pins
        for name, pins in project()["optional-dependencies"].items()
        if name != "docs"  # `make docs` installs those
    }
    return dict(pin.split("==") for pins in tested.values() for pin in pins if "==" in pin)


def test_lower_bounds_are_kept_by_the_pins():
    asked = [*project()["dependencies"], *project()["optional-dependencies"]["openvino"]]
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    for each in map(Requirement, asked):
        assert each.specifier and pinned[canonicalize_name(each.name)] in each.specifier, each


def test_installed_versions_are_the_pinned_ones():
    wrong = {
        name: (version, installed)
        for name, version in {**pins(), **extras()}.items()
        if (installed := importlib.metadata.version(name).partition("+")[0]) != version
    }
    assert not wrong


def test_everything_the_library_imports_is_pinned():
    provided = importlib.metadata.packages_distributions()
    imported = set()
    for path in (root() / "lib").rglob("*.py"):
        imported |= set(re.findall(r"^\s*(?:from|import) ([a-zA-Z_]\w*)", path.read_text(), re.M))
    pinned = {name.lower().replace("_", "-") for name in {**pins(), **extras()}}
    missing = {
        name
        for name in imported - {"kerf"}
        if name in provided and not {d.lower().replace("_", "-") for d in provided[name]} & pinned
    }
    assert not missing
