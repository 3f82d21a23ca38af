"""How each family of models is measured: the module that the family names."""

from importlib import import_module
from types import ModuleType

from kerf.models import families, registry


def of_family(name: str) -> ModuleType:
    """How models of a family are measured."""
    return import_module(families.FAMILIES[name].EVALUATION)


def kind(model: str) -> ModuleType:
    """How models of this one's family are measured."""
    return of_family(families.name_of(registry.resolve(model)))
