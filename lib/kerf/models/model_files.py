"""Which files make a model: the weights that its library opens, and the small files that travel with them.

Both lie in the model's directory and in the folders that its modules.json names. Whatever else is there is no part of the model
and is neither counted, digested nor copied: a trainer's checkpoints, exports to other frameworks, code, pickles.
"""

import json
from pathlib import Path

from kerf.core.errors import refuse

CARD = "card.json"  # of a candidate, see `kerf.models.manifest`
OURS = ("meta.json", CARD)  # what Kerf writes beside a model
LARGEST = 1 << 27  # bytes of a small file; tokenizers of a million tokens have 50 MB
HEAVY = (".parquet", ".safetensors", ".bin", ".onnx")  # files of weights that Kerf writes
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
CODE = (".py", ".pyc", ".so", ".sh", ".ipynb")
FOREIGN = (
    ".h5",
    ".msgpack",
    ".ot",
    ".gguf",
    ".ggml",
    ".onnx_data",
    ".pb",
    ".tflite",
    ".mlmodel",
    ".xml",
    ".keras",
)
BINARY = (
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
    b"PK\x03\x04",
    b"\x7fELF",
    b"\x89HDF",
    b"GGUF",
)
# What is asked of a hub; patterns match below folders too.
WANTED = [
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "*.spm",
    "*.vocab",
    "*.codes",
    "*.tokenizer",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "COPYING*",
    "USE_POLICY*",
    "README.md",
]
UNWANTED = [
    "checkpoint-*/*",
    "onnx/*",
    "openvino/*",
    "original/*",
    "coreml/*",
    "gguf/*",
    "mlx/*",
    "consolidated*.safetensors",
]


def module_folders(folder: Path) -> list[Path]:
    """Folders of the modules of sentence-transformers, the transformer's first; of another model its own directory alone."""
    found = [folder / path for path in _paths(folder / "modules.json")]
    routed = [
        each / name
        for each in found
        for name in _read(each / "router_config.json").get("types") or ()
    ]
    return list(dict.fromkeys([*found, *routed]))


def weights(folder: Path) -> list[Path]:
    """Weight files that are opened: the transformer's, then those of the modules behind it."""
    return list(
        dict.fromkeys(path for each in module_folders(folder) for path in _weights_of(each))
    )


def heads(folder: Path) -> list[Path]:
    """Weight files of the modules behind the transformer, which no method compresses."""
    first = _weights_of(module_folders(folder)[0])
    return [path for path in weights(folder) if path not in first]


def small(folder: Path) -> list[Path]:
    """Configuration, tokenizer, templates, licences: every file beside the weights that is no weights, pickle or code itself."""
    places = list(dict.fromkeys([folder, *module_folders(folder)]))
    places += [each / "additional_chat_templates" for each in places]
    return sorted(
        path for each in places if each.is_dir() for path in each.iterdir() if _is_small(path)
    )


def of(folder: Path) -> list[Path]:
    """All files of a model; of a candidate, those that its card lists, and the card."""
    card = _read(folder / CARD)
    if card.keys() >= {"files", "schema", "sha256"}:
        return sorted(path for name in (*card["files"], CARD) if (path := folder / name).is_file())
    return sorted([*weights(folder), *small(folder)])


def check_no_adapter(model: str, folder: Path) -> None:
    """Refuse a directory whose weights have an adapter beside them, which would not be applied, by the adapter's file."""
    for each in dict.fromkeys([folder, *module_folders(folder)]):
        beside = sorted(each.glob("*.safetensors")) if each.is_dir() else []
        named = [
            path
            for path in sorted(each.glob("*adapter*"))
            if path.name == "adapter_config.json" or path.suffix in HEAVY
        ]
        found = named + [
            path for path in beside if path not in _weights_of(each) and _is_adapter(path)
        ]
        if found:
            name = found[0].relative_to(folder).as_posix()
            advice = "is one, and is not applied: merge it (peft's merge_and_unload()) and save the model"
            raise refuse("model", model, f"a model without an adapter; {name} {advice}")


def _is_adapter(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return any(".lora_" in name or "lora_A" in name for name in file.keys())
    except (SafetensorError, OSError):
        return False


def _is_small(path: Path) -> bool:
    name = path.name.lower()
    if (
        name.startswith(".")
        or name in OURS
        or name.endswith((".index.json", *HEAVY, *PICKLES, *CODE, *FOREIGN))
    ):
        return False
    if not path.is_file() or path.stat().st_size > LARGEST:
        return False
    with path.open("rb") as file:
        return not file.read(8).startswith(BINARY)


def _weights_of(folder: Path) -> list[Path]:
    """As transformers looks for them; a GPTQ checkpoint may call its only file something else."""
    named = _read(folder / "config.json").get("transformers_weights")
    for path in (folder / (named or "model.safetensors"), folder / "model.safetensors.index.json"):
        if path.is_file():
            parts = (
                sorted(set(_read(path).get("weight_map", {}).values()))
                if path.name.endswith(".index.json")
                else [path.name]
            )
            return [folder / name for name in parts if (folder / name).is_file()]
    return sorted(folder.glob("*.safetensors"))


def _paths(modules: Path) -> list[str]:
    try:
        return [str(module["path"]) for module in json.loads(modules.read_text())] or [""]
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
    ):  # whoever checks the directory refuses what is malformed
        return [""]


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
