"""Which files make a model: the weights that its library opens, and the small files that travel with them.

Both lie in the model's directory and in the folders that its modules.json names. Anything else is no part of the model and is
neither counted, digested nor copied: a trainer's checkpoints, exports to other frameworks, code, pickles.
"""

import json
from itertools import chain
from pathlib import Path
from typing import Any

CARD = "card.json"  # manifest of a candidate, see `kerf.models.manifest`
LARGEST = 1 << 27  # bytes of a small file; tokenizers of a million tokens have 50 MB
HEAVY = (".parquet", ".safetensors", ".bin", ".onnx")  # files of weights that Kerf writes
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
CODE = (".py", ".pyc", ".so", ".sh", ".ipynb")
FRAMEWORKS = (".h5", ".msgpack", ".ot", ".pb", ".tflite", ".mlmodel", ".xml", ".keras")
FOREIGN = (*FRAMEWORKS, ".gguf", ".ggml", ".onnx_data")
PICKLED = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # first bytes
BINARY = (*PICKLED, b"\x7fELF", b"\x89HDF", b"GGUF")
# What is requested from a hub; patterns match in folders too.
TOKENIZERS = ["*.txt", "*.model", "*.tiktoken", "*.spm", "*.vocab", "*.codes", "*.tokenizer"]
LICENSES = ["LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*"]
WANTED = ["*.json", "*.safetensors", "*.jinja", "README.md", *TOKENIZERS, *LICENSES]
EXPORTS = ["onnx/*", "openvino/*", "original/*", "coreml/*", "gguf/*", "mlx/*"]
UNWANTED = ["checkpoint-*/*", "consolidated*.safetensors", *EXPORTS]


def module_folders(folder: Path) -> list[Path]:
    """Folders of the modules of sentence-transformers, the transformer's first; of another model its own directory alone."""
    folders = [folder / path for path in _module_paths(folder / "modules.json")]
    for module in list(folders):
        types = _dict(_read(module / "router_config.json").get("types"))
        folders += [module / name for name in types]
    return list(dict.fromkeys(folders))


def weights(folder: Path) -> list[Path]:
    """Weight files that are opened: the transformer's, then those of the modules behind it."""
    paths = chain.from_iterable(_weights_of(module) for module in module_folders(folder))
    return list(dict.fromkeys(paths))


def heads(folder: Path) -> list[Path]:
    """Weight files of the modules behind the transformer, which no method compresses."""
    transformer = _weights_of(module_folders(folder)[0])
    return [path for path in weights(folder) if path not in transformer]


def small(folder: Path) -> list[Path]:
    """Configuration, tokenizer, templates, licences: every file beside the weights that is no weights, pickle or code itself."""
    folders = {folder, *module_folders(folder)}
    folders |= {each / "additional_chat_templates" for each in folders}
    paths = chain.from_iterable(each.iterdir() for each in folders if each.is_dir())
    return sorted(path for path in paths if _is_small(path))


def of(folder: Path) -> list[Path]:
    """All files of a model; of a candidate, those that its manifest lists, and the manifest."""
    manifest = _read(folder / CARD)
    if manifest.keys() >= {"files", "schema", "sha256"}:
        paths = [folder / name for name in (*manifest["files"], CARD)]
        return sorted(path for path in paths if path.is_file())
    return sorted([*weights(folder), *small(folder)])


def _is_small(path: Path) -> bool:
    name = path.name.lower()
    other = (".index.json", *HEAVY, *PICKLES, *CODE, *FOREIGN)
    if name in ("meta.json", CARD) or name.startswith(".") or name.endswith(other):
        return False
    if not path.is_file() or path.stat().st_size > LARGEST:
        return False
    with path.open("rb") as file:
        return not file.read(8).startswith(BINARY)


def _weights_of(folder: Path) -> list[Path]:
    """As transformers looks for them; a GPTQ checkpoint may call its only file something else."""
    named = _read(folder / "config.json").get("transformers_weights")
    for name in (named or "model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_file():
            is_index = name.endswith(".index.json")
            parts = _dict(_read(folder / name).get("weight_map")).values() if is_index else [name]
            return [folder / part for part in sorted({*parts}) if (folder / part).is_file()]
    return sorted(folder.glob("*.safetensors"))


# `safety` refuses what is malformed; until it has looked, a malformed file is an empty one.
def _module_paths(modules: Path) -> list[str]:
    try:
        return [str(module["path"]) for module in json.loads(modules.read_text())] or [""]
    except (OSError, ValueError, TypeError, KeyError):
        return [""]


def _read(path: Path) -> dict[str, Any]:
    try:
        return _dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
