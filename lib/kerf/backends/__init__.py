"""Real kernels: candidates that compute in bytes, not only lie in them. One library a file, all with the same names:

available(): whether it is installed, INSTALL: the line that installs it; convert(opened): the model as its graph, of
which weights(graph) names the layers, put_integers and put_packed (graph, found) change them, and save(graph, folder,
half) writes; run(folder, card, threads): the model of a candidate as a function of input_ids, attention_mask and
token_type_ids, (texts, tokens) each, that gives embeddings or scores (texts, features); settings(step) is what the card
tells it.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from kerf.errors import refuse


def backend(name: str) -> ModuleType:
    """The module of a library; Refused when it is not installed."""
    found = import_module(f"kerf.backends.{name}")
    if not found.available():
        raise refuse("backend", name, f"a library that is installed: `{found.INSTALL}`")
    return found


def load(folder: Path, card: dict):
    """The encoder or reranker of a candidate's directory, whose card was verified."""
    from kerf.artifacts import threads
    from kerf.backends.serve import Encoder, Reranker

    serving = {"encoder": Encoder, "reranker": Reranker}[card["kind"]]
    return serving(folder, backend(card["backend"]).run(folder, card, threads()))
