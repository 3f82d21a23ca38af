"""Which files make a model: the weights that its library opens, and the small files that travel with them.

Both lie in the model's directory and in the folders that its modules.json names. Anything else is neither counted, digested nor
copied: a trainer's checkpoints, exports to other frameworks, code, pickles.
"""

from itertools import chain
from pathlib import Path
from typing import Any

from kerf.core.digests import read_json

CARD = "card.json"  # manifest of a candidate, see `kerf.models.manifest`
LARGEST = 1 << 27  # bytes of a small file; tokenizers of a million tokens have 50 MB
HEAVY = (".parquet", ".safetensors", ".bin", ".onnx")  # files of weights that Kerf writes
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
CODE = (".py", ".pyc", ".so", ".sh", ".ipynb")
FRAMEWORKS = (".h5", ".msgpack", ".ot", ".pb", ".tflite", ".mlmodel", ".xml", ".keras")
FOREIGN = (".index.json", *FRAMEWORKS, ".gguf", ".ggml", ".onnx_data")
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
    modules = read_or_empty(folder / "modules.json", list)
    paths = [str(m["path"]) for m in modules if isinstance(m, dict) and "path" in m]
    folders = [folder / path for path in paths or [""]]
    for module in list(folders):
        folders += [
            module / name for name in read_or_empty(module / "router_config.json", dict, "types")
        ]
    return list(dict.fromkeys(folders))


def weights(folder: Path) -> list[Path]:
    """Weight files that are opened: the transformer's, then those of the modules behind it."""
    return list(dict.fromkeys(chain.from_iterable(map(_weights_of, module_folders(folder)))))


def heads(folder: Path) -> list[Path]:
    """Weight files of the modules behind the transformer, which no method compresses."""
    transformer = _weights_of(module_folders(folder)[0])
    return [path for path in weights(folder) if path not in transformer]


def small(folder: Path) -> list[Path]:
    """Configuration, tokenizer, templates, licences: every file beside the weights that is no weights, pickle or code itself."""
    folders = {folder, *module_folders(folder)}
    folders |= {path / "additional_chat_templates" for path in folders}
    paths = chain.from_iterable(path.iterdir() for path in folders if path.is_dir())
    return sorted(filter(_is_small, paths))


def of(folder: Path) -> list[Path]:
    """All files of a model; of a candidate, those that its manifest lists, and the manifest."""
    manifest = read_or_empty(folder / CARD, dict)
    if manifest.keys() >= {"files", "schema", "sha256"}:
        paths = [folder / name for name in (*manifest["files"], CARD)]
        return sorted(path for path in paths if path.is_file())
    return sorted([*weights(folder), *small(folder)])


def _is_small(path: Path) -> bool:
    name = path.name.lower()
    if name.startswith(".") or name.endswith((*HEAVY, *PICKLES, *CODE, *FOREIGN)):
        return False
    if name in ("meta.json", CARD) or not path.is_file() or path.stat().st_size > LARGEST:
        return False
    with path.open("rb") as file:
        return not file.read(8).startswith(BINARY)


def _weights_of(folder: Path) -> list[Path]:
    """As transformers looks for them; a GPTQ checkpoint may call its only file something else."""
    named = read_or_empty(folder / "config.json", str, "transformers_weights")
    for name in (named or "model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_file():
            is_index = name.endswith(".index.json")
            parts = (
                read_or_empty(folder / name, dict, "weight_map").values() if is_index else [name]
            )
            return [folder / part for part in sorted({*parts}) if (folder / part).is_file()]
    return sorted(folder.glob("*.safetensors"))


def read_or_empty(path: Path, form: type, key: str = "") -> Any:
    """Content of a JSON file, or its value of `key`; an empty `form` for a malformed file, which `safety` refuses."""
    try:
        content = read_json(path)
        content = content[key] if key else content
    except (OSError, ValueError, LookupError, TypeError):
        return form()
    return content if isinstance(content, form) else form()
