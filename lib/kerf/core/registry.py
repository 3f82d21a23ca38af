"""Registries: entries by name, Kerf's own and those that other packages add by an entry point.

[project.entry-points."kerf.methods"]
mine = "my_package.my_method:METHOD"
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from kerf.core.errors import InputError, one_of, refuse


class Registry(Mapping[str, Any]):
    """Entries by name, in the order in which they were added. Entry points of `group` are loaded at the first use.

    Entries are objects with a `name`, or modules with a NAME.
    """

    def __init__(self, group: str, *own: object) -> None:
        self.group, self._own = group, own
        self._loaded: dict[str, Any] | None = None

    def _entries(self) -> dict[str, Any]:
        if self._loaded is None:
            self._loaded = {}
            for entry in self._own:
                self.add(entry)
            for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
                self.add(_load(point))
        return self._loaded

    def add(self, entry: object) -> None:
        """Add an entry. Raises InputError for a name that is taken."""
        name = getattr(entry, "name", None) or getattr(entry, "NAME", None)
        if not isinstance(name, str):
            raise InputError(f"{self.group}: {entry!r} has no name")
        if name in self._entries():
            raise refuse(self.group, name, "a name that no other entry has")
        self._entries()[name] = entry

    def remove(self, name: str) -> None:
        """Remove an entry."""
        del self._entries()[name]

    def named(self, name: object, parameter: str) -> Any:
        """The entry of a name. Raises InputError for an unknown name as the value of `parameter`."""
        if not isinstance(name, str) or name not in self:
            raise refuse(parameter, name, one_of(name, self))
        return self[name]

    def __getitem__(self, name: str) -> Any:
        return self._entries()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())


def _load(point: EntryPoint) -> object:
    try:
        return point.load()
    except Exception as error:  # another package's code may raise anything
        origin = f"entry point {point.group}, {point.name} = {point.value}"
        raise InputError(f"{origin}: it does not load ({error})") from error


def resolved(target: Callable | str) -> Callable:
    """A function, or the one that "module:function" names: a string defers the import of its module."""
    if callable(target):
        return target
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
