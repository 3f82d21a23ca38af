"""Real kernels: candidates that compute in bytes, not only lie in them. One library a file, all with the same names:

available(): whether it is installed, INSTALL: the line that installs it; METHODS: what `quantize` methods it has;
make(folder, opened, found, step): write a model that it runs; run(folder, card, threads): the model as a function of
token numbers and mask, (texts, tokens) each, that gives embeddings (texts, features).
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from kerf.errors import refuse
from kerf.steps import BACKENDS


def backend(name: str) -> ModuleType:
    """The module of a library; Refused when it is not installed."""
    found = import_module(f"kerf.backends.{name}")
    if not found.available():
        raise refuse("backend", name, f"a library that is installed: `{found.INSTALL}`, or {_others(name)}")
    return found


def _others(name: str) -> str:
    there = [other for other in BACKENDS if other != name and import_module(f"kerf.backends.{other}").available()]
    return f"one that is there: {', '.join(there)}" if there else "none of the others, which are not there either"


def load(folder: Path, card: dict):
    """The encoder of a candidate's directory, whose card was verified."""
    from kerf.artifacts import threads
    from kerf.backends.serve import Encoder

    return Encoder(folder, backend(card["backend"]).run(folder, card, threads()))
