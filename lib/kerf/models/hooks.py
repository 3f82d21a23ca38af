"""Hooks of a network that exist for the duration of a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.utils.hooks import RemovableHandle


@contextmanager
def attached(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove the hooks of these handles at the end of the block."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def on_inputs(modules: Mapping[str, Module], look: Callable[..., Any]) -> list[RemovableHandle]:
    """Handles of hooks that call look(name, args) before a module runs; what it returns takes the place of args."""
    return [
        module.register_forward_pre_hook(lambda _, args, name=name: look(name, args))
        for name, module in modules.items()
    ]


def on_outputs(modules: Mapping[str, Module], look: Callable[..., Any]) -> list[RemovableHandle]:
    """Handles of hooks that call look(name, args, output) after a module ran; what it returns takes the place of output."""
    return [
        module.register_forward_hook(lambda _, args, output, name=name: look(name, args, output))
        for name, module in modules.items()
    ]
