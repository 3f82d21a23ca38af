"""GGUF files: read once by transformers, and kept as safetensors, which open a hundred times faster."""

from pathlib import Path

from kerf.core.cache import artifact
from kerf.core.digests import sha256
from kerf.models.families.opening import from_folder


def converted(path: Path) -> Path:
    """Artifact with a model directory (config.json, model.safetensors, tokenizer) of the GGUF file, in float32."""
    return artifact(
        "converted",
        {"sha256": sha256(path)},
        lambda folder: _make(folder, path),
        code=[Path(__file__)],
    )


def _make(folder: Path, path: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    packed = from_folder("AutoModelForCausalLM", path.parent, dtype="float32", gguf_file=path.name)
    config, weights, kind = packed.config, packed.state_dict(), type(packed)
    del (
        packed.config.quantization_config
    )  # transformers would take the float weights for packed ones
    for key in ("_name_or_path", "_model_name_or_path"):
        config.__dict__.pop(key, None)
    plain = kind(config)
    plain.load_state_dict(weights)
    plain.save_pretrained(folder)
    from_folder("AutoTokenizer", path.parent, gguf_file=path.name).save_pretrained(folder)
