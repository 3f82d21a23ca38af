"""Hooks of a network that are there for as long as a `with` lasts."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def attached(handles: Iterable) -> Iterator[None]:
    """While it lasts, the hooks of these handles are there."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def on_inputs(modules: dict, look: Callable) -> list:
    """Handles of hooks that call look(name, args) before a module runs; what it returns takes the place of args."""
    return [
        module.register_forward_pre_hook(lambda _, args, name=name: look(name, args))
        for name, module in modules.items()
    ]


def on_outputs(modules: dict, look: Callable) -> list:
    """Handles of hooks that call look(name, args, output) after a module ran; what it returns takes the place of output."""
    return [
        module.register_forward_hook(lambda _, args, output, name=name: look(name, args, output))
        for name, module in modules.items()
    ]
