"""Registries: entries by name, Kerf's own and those that other packages add by an entry point.

[project.entry-points."kerf.methods"]
mine = "my_package.my_method:METHOD"
"""

import pkgutil
from collections import UserDict
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

from kerf.core.errors import InputError, one_of, refuse


class Registry(UserDict[str, Any]):
    """Objects with a `name` or modules with a NAME, in the order of adding; entry points of `group` are loaded at first use."""

    def __init__(self, group: str, *own: object) -> None:
        self.group, self._own = group, own

    @cached_property
    def data(self) -> dict[str, Any]:  # type: ignore[override]  # where UserDict has its entries
        """The entries by name."""
        self.data = {}
        for entry in self._own:
            self.add(entry)
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            try:
                entry = point.load()
            except Exception as error:  # another package's code may raise anything
                origin = f"entry point {point.group}, {point.name} = {point.value}"
                raise InputError(f"{origin}: it does not load ({error})") from error
            self.add(entry)
        return self.data

    def add(self, entry: object) -> None:
        """Add an entry. Raises InputError for a name that is taken."""
        name = getattr(entry, "name", None) or getattr(entry, "NAME", None)
        if not isinstance(name, str):
            raise InputError(f"{self.group}: {entry!r} has no name")
        if name in self:
            raise refuse(self.group, name, "a name that no other entry has")
        self[name] = entry

    def named(self, name: object, parameter: str) -> Any:
        """The entry of a name. Raises InputError for an unknown name as the value of `parameter`."""
        if not isinstance(name, str) or name not in self:
            raise refuse(parameter, name, one_of(name, self))
        return self[name]


def resolved(target: Callable | str) -> Callable:
    """A function, or the one that "module:function" names: a string defers the import of its module."""
    return target if callable(target) else pkgutil.resolve_name(target)
