"""Models that sentence-transformers opens: without progress bars, network or remote code, in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kerf.artifacts import threads
from kerf.errors import Refused, refuse
from kerf.model_tensors import complete


@complete
def opened(class_name: str, folder: Path, device: str = "cpu"):
    """The model of `folder` as a class of sentence-transformers, on `device`. Raises Refused for one that does not open."""
    import sentence_transformers
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads())
    try:
        options = {"use_safetensors": True, "dtype": "float32"}
        kind = getattr(sentence_transformers, class_name)
        return kind(str(folder), device=device, local_files_only=True, model_kwargs=options).eval()
    except Refused:
        raise
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())  # names of tensors stand below the first line
        raise refuse("model", str(folder), f"a model that sentence-transformers opens ({cause[:160]})") from error


@contextmanager
def loading(class_name: str, weights: dict) -> Iterator[None]:
    """While it lasts, what is opened has a transformer of `class_name` with `weights` inside."""
    from unittest.mock import patch

    import transformers
    from sentence_transformers.base.modules.transformer import Transformer

    def from_store(self, name, task, config, *args, **options):
        # from_pretrained takes either a directory with weights or a state dict, and ours are packed.
        ours = {"config": config, "state_dict": weights, "dtype": "float32", "use_safetensors": None}
        return getattr(transformers, class_name).from_pretrained(None, **{**options, **ours})

    with patch.object(Transformer, "_load_model", from_store):
        yield
