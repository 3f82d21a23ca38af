"""Kerf measures what compressing a model costs.

The path through the library, top to bottom: `models` and `texts` say what is compressed and on which
text; `calibrate` looks at the inputs of every layer; `quantize` cuts; `store` keeps the result;
`evaluate` compares it with the baseline; `judge` decides. Notebooks call these stages. The
`workbench` package runs notebooks and renders reports; nothing here imports from it.
"""

__version__ = "0.1.0"
__all__ = ["embedder", "load", "open_model", "reranker"]


def __getattr__(name: str):
    # Lazy, so that `import kerf` (and with it every command-line refusal) does not wait for torch.
    if name in ("embedder", "reranker"):
        from kerf.backends import service

        return getattr(service, name)
    if name in __all__:
        from kerf.models import registry

        return getattr(registry, name)
    raise AttributeError(f"module 'kerf' has no attribute {name!r}")
