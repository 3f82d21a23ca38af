"""How everything in a model directory is opened: by `from_folder` alone, without network and without the model's own code."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from kerf.core.cache import threads
from kerf.core.errors import InputError, printable, refuse
from kerf.models.tensor_check import open_complete

LISTED = ("SentenceTransformer", "CrossEncoder")  # classes of sentence-transformers


def from_folder(class_name: str, folder: Path | str, **options: Any) -> Any:
    """An object of a class of transformers (or SentenceTransformer, CrossEncoder), opened from `folder` or from a `state_dict`.

    `trust_remote_code=False` is explicit, since transformers asks on standard input where it is left out.
    Raises InputError for what does not open.
    """
    options |= {"trust_remote_code": False, "local_files_only": True}
    library = "sentence-transformers" if class_name in LISTED else "transformers"
    try:
        kind = getattr(import_module(library.replace("-", "_")), class_name)
        if class_name in LISTED:
            return kind(str(folder), **options)
        opened = kind.from_pretrained(None if "state_dict" in options else str(folder), **options)
        if class_name == "GenerationConfig":
            vars(opened).pop("trust_remote_code", None)  # it stores every argument as a setting
        return opened
    except InputError:
        raise
    except Exception as error:  # names of tensors stand below the first line
        cause = printable(" ".join(f"{type(error).__name__}: {error}".split()), 160)
        raise refuse("model", str(folder), f"a model that {library} opens ({cause})") from error


def open_weights(class_name: str, folder: Path, **options: Any) -> Any:
    """A model in evaluation mode, opened without progress bars. Raises InputError for tensors that do not fit, too."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads())
    return open_complete(folder, lambda: from_folder(class_name, folder, **options)).eval()


@contextmanager
def loading(class_name: str, weights: dict) -> Iterator[None]:
    """Within the block, sentence-transformers opens a transformer of `class_name` with `weights`, whatever the files hold."""
    from unittest.mock import patch

    from sentence_transformers.base.modules.transformer import Transformer

    def load(self, name, task, config, *args, **options):
        # from_pretrained takes either a directory with weights or a state dict, and ours are packed.
        ours = {"config": config, "state_dict": weights, "dtype": "float32"}
        return from_folder(class_name, name, **{**options, **ours, "use_safetensors": None})

    with patch.object(Transformer, "_load_model", load):
        yield
