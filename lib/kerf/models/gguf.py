"""GGUF files: read once by transformers and stored as safetensors, which open a hundred times faster."""

from functools import partial
from pathlib import Path

from kerf.core.cache import artifact
from kerf.core.digests import sha256
from kerf.models.families.opening import from_folder


def converted(folder: Path) -> Path:
    """Artifact with a model directory (config.json, model.safetensors, tokenizer) of the folder's model.gguf, in float32."""
    path = folder / "model.gguf"
    make = partial(_make, path=path)
    return artifact("converted", {"sha256": sha256(path)}, make, code=[Path(__file__)])


def _make(folder: Path, path: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    packed = from_folder("AutoModelForCausalLM", path.parent, dtype="float32", gguf_file=path.name)
    config, weights = packed.config, packed.state_dict()
    del config.quantization_config  # transformers would take the float weights for packed ones
    for key in ("_name_or_path", "_model_name_or_path"):
        config.__dict__.pop(key, None)
    plain = type(packed)(config)
    plain.load_state_dict(weights)
    plain.save_pretrained(folder)
    from_folder("AutoTokenizer", path.parent, gguf_file=path.name).save_pretrained(folder)
