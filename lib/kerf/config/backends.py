"""Backends by name: libraries that compute in INT8, INT4 or bfloat16, and the methods that each runs.

A new backend is a file with the functions that `kerf.backends` lists and an entry here, or an entry point `kerf.backends`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kerf.core.registry import Registry


@dataclass(frozen=True)
class Backend:
    """A library. module: where its functions stand; methods: those of `quantize` steps that it runs; opener: a function of a
    candidate's directory and its manifest to the model that a service calls."""

    name: str
    module: str
    methods: tuple[str, ...]
    opener: Callable | str = "kerf.backends.serve:opened"


BACKENDS = Registry(
    "kerf.backends",
    Backend("openvino", "kerf.backends.openvino_", ("static", "weight_only", "bfloat16")),
    Backend("onnxruntime", "kerf.backends.onnxruntime_", ("static", "dynamic", "weight_only")),
    Backend("torch", "kerf.backends.torch_", ("static", "dynamic", "bfloat16")),
)


def modules(name: str) -> list[str]:
    """Where the functions of a backend stand."""
    entry = BACKENDS[name]
    opener = entry.opener if isinstance(entry.opener, str) else entry.opener.__module__
    return [entry.module, opener.partition(":")[0]]


def libraries(method: str) -> list[str]:
    """Names of the backends that run a method."""
    return [name for name, each in BACKENDS.items() if method in each.methods]
