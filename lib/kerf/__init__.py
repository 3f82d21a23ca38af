"""Kerf measures what compressing a model costs.

Packages, bottom to top: `models` and `data` open the model and the texts; `calibration` records the inputs of layers;
`quantize`, `prune` and `training` compress; `tensors` stores the result; `evaluate` compares it with the baseline and applies
gates; `pipeline` dispatches the steps; `workbench` runs notebooks and writes reports.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
# Imported on first use, so that `import kerf`, and with it every command-line refusal, does not wait for torch.
_PUBLIC = dict.fromkeys(("compare", "compress"), "kerf.api")
_PUBLIC |= dict.fromkeys(("embedder", "reranker"), "kerf.backends.switch")
_PUBLIC |= dict.fromkeys(("load", "open_model"), "kerf.models.registry")
__all__ = ["compare", "compress", "embedder", "load", "open_model", "reranker"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kerf' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
