"""Backends by name: libraries that compute in INT8, INT4 or bfloat16, and the methods that each of them runs.

A new backend is a file with the functions that `kerf.backends` lists and an entry below, or an entry point `kerf.backends`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kerf.core.registry import Registry


@dataclass(frozen=True)
class Backend:
    """A library, the module of its functions, and the methods of `quantize` steps that it runs."""

    name: str
    module: str
    methods: tuple[str, ...]
    opener: Callable | str = "kerf.backends.serve:opened"  # (directory, manifest) -> served model


BACKENDS = Registry(
    "kerf.backends",
    Backend("openvino", "kerf.backends.openvino_", ("static", "weight_only", "bfloat16")),
    Backend("onnxruntime", "kerf.backends.onnxruntime_", ("static", "dynamic", "weight_only")),
    Backend("torch", "kerf.backends.torch_", ("static", "dynamic", "bfloat16")),
)


def module_of(function: Callable | str) -> str:
    """The module of a function or of "module:function"."""
    return function.partition(":")[0] if isinstance(function, str) else function.__module__


def modules(name: str) -> list[str]:
    """The modules of a backend."""
    return [BACKENDS[name].module, module_of(BACKENDS[name].opener)]
