"""How everything of a model directory is opened: by `from_folder` alone, without network and without the model's own code."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from kerf.core.cache import threads
from kerf.core.errors import InputError, refuse
from kerf.models.safety.unsafe import shown
from kerf.models.tensor_check import refuse_incomplete


def from_folder(class_name: str, folder: Path | str, **options):
    """What a class of transformers (or SentenceTransformer, CrossEncoder) opens of `folder`, or makes of a `state_dict` among the options.

    The library is told `trust_remote_code=False`, since transformers asks on standard input where it is told nothing.
    Raises InputError for what does not open.
    """
    options |= {"trust_remote_code": False, "local_files_only": True}
    library = (
        "sentence-transformers"
        if class_name in ("SentenceTransformer", "CrossEncoder")
        else "transformers"
    )
    try:
        kind = getattr(import_module(library.replace("-", "_")), class_name)
        if library == "sentence-transformers":
            return kind(str(folder), **options)
        found = kind.from_pretrained(None if "state_dict" in options else str(folder), **options)
        if class_name == "GenerationConfig":
            vars(found).pop("trust_remote_code", None)  # it keeps every argument as a setting
        return found
    except InputError:
        raise
    except Exception as error:
        cause = shown(
            " ".join(f"{type(error).__name__}: {error}".split()), 160
        )  # names of tensors stand below the first line
        raise refuse("model", str(folder), f"a model that {library} opens ({cause})") from error


def quiet() -> None:
    """No progress bars, and torch with as many threads as were asked for."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads())


@refuse_incomplete
def opened(class_name: str, folder: Path, device: str = "cpu"):
    """The model of `folder` as a class of sentence-transformers, on `device`. Raises InputError for one that does not open."""
    quiet()
    return from_folder(
        class_name,
        folder,
        device=device,
        model_kwargs={"use_safetensors": True, "dtype": "float32"},
    ).eval()


@contextmanager
def loading(class_name: str, weights: dict) -> Iterator[None]:
    """While it lasts, what is opened has a transformer of `class_name` with `weights` inside."""
    from unittest.mock import patch

    from sentence_transformers.base.modules.transformer import Transformer

    def from_store(self, name, task, config, *args, **options):
        # from_pretrained takes either a directory with weights or a state dict, and ours are packed.
        ours = {
            "config": config,
            "state_dict": weights,
            "dtype": "float32",
            "use_safetensors": None,
        }
        return from_folder(class_name, name, **{**options, **ours})

    with patch.object(Transformer, "_load_model", from_store):
        yield
