"""How everything of a model directory is opened: by `from_folder` alone, without network and without the model's own code."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kerf.artifacts import threads
from kerf.errors import Refused, refuse


def from_folder(class_name: str, folder: Path | str | None, **options):
    """What a class of transformers (or SentenceTransformer, CrossEncoder) opens of `folder`; None where `options` hold the weights.

    The library is told `trust_remote_code=False`, since transformers asks on standard input where it is told nothing.
    """
    options |= {"trust_remote_code": False, "local_files_only": True}
    place = None if folder is None else str(folder)
    if class_name in ("SentenceTransformer", "CrossEncoder"):
        import sentence_transformers

        return getattr(sentence_transformers, class_name)(place, **options)
    import transformers

    return getattr(transformers, class_name).from_pretrained(place, **options)


def opened(class_name: str, folder: Path, device: str = "cpu"):
    """The model of `folder` as a class of sentence-transformers, on `device`. Raises Refused for one that does not open."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads())
    try:
        options = {"use_safetensors": True, "dtype": "float32"}
        return from_folder(class_name, folder, device=device, model_kwargs=options).eval()
    except Refused:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise refuse("model", str(folder), f"a model that sentence-transformers opens ({cause[:160]})") from error


@contextmanager
def loading(class_name: str, weights: dict) -> Iterator[None]:
    """While it lasts, what is opened has a transformer of `class_name` with `weights` inside."""
    from unittest.mock import patch

    from sentence_transformers.base.modules.transformer import Transformer

    def from_store(self, name, task, config, *args, **options):
        # from_pretrained takes either a directory with weights or a state dict, and ours are packed.
        return from_folder(class_name, None, config=config, state_dict=weights, dtype="float32")

    with patch.object(Transformer, "_load_model", from_store):
        yield
