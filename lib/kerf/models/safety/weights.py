"""Weights: safetensors that open, where the library looks for them, no pickle that it would read, and sizes that they can fill,
since a network larger than its weights would take hours or all memory to build."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from kerf.models import model_files
from kerf.models.model_files import HEAVY, PICKLES
from kerf.models.safety.documents import MALFORMED, Documents, Sizes, walk
from kerf.models.safety.tree import Unsafe

HEADER = 25_000_000  # bytes; a hundred thousand tensors take ten million
PACKED = 0, 2**40  # tensors and bytes that the sizes of a candidate are compared with
# Names under which a library looks for weights in a folder.
PICKLED = re.compile(r"pytorch_model.*\.bin(?:\.index\.json)?", re.DOTALL)
SAFE = re.compile(r"model.*\.safetensors(?:\.index\.json)?", re.DOTALL)
# First bytes of a pickle: of protocol 2 and later, the zip that torch writes, and protocol 0, which names a module in a line.
PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]|c[\w.]+\n.*\n", re.DOTALL)
ONLY_PICKLES = "weights in safetensors; {} has only pickles ({}), which could run code"
FEW = 1024  # layers that any network may have: they are built in a moment
POSITIONS = 2**25  # rotary positions take no weights; ten million is the most in use
PER_BYTE = 8  # weights in a byte, for those packed at one bit
LAYERS = re.compile(r"layers?$|^n_layer|layers_|depths?$|blocks?$|experts?$|stages?$")
LENGTHS = re.compile(r"positions?$|position_embeddings$|n_ctx$|(?:seq_len|(?:seq|context)_length)$")
SQUARED = ("hidden_size", "d_model", "n_embd")  # rows, and about as many columns, of a matrix
WIDTHS = r"sizes?$|dims?$|dimensions?$|width$|channels?$|features$|heads?$|labels$|groups?$|rank$"
WIDTHS += r"|n_embd|n_inner|d_model|d_ff|d_kv|ffn"


def check(folder: Path, sizes: Sizes, documents: Documents, has_weights: bool) -> None:
    """Refuse weights that are missing, pickled or no safetensors, an adapter beside them, and sizes that they cannot fill."""
    modules = [str(PurePosixPath(module["path"])) for module in documents.get("modules.json", [])]
    places = ["", *dict.fromkeys(path for path in modules if path != ".")]
    _check_no_adapter(folder, sizes)
    tensors, size = _content(folder, sizes, documents, places) if has_weights else PACKED
    for file, document in documents.items():
        if PurePosixPath(file).name == "config.json" and _is_opened(file, places):
            for key, value, owner in walk(document):
                _check_size(f"{key} of {file}", value, _most(key, owner, tensors, size))


def _is_opened(name: str, places: list[str]) -> bool:
    """Whether a library looks for the file: at the top, and below the folders of modules."""
    return "/" not in name or name.startswith(tuple(f"{place}/" for place in places if place))


def _check_no_adapter(folder: Path, sizes: Sizes) -> None:
    """Refuse an adapter beside the weights, which would not be applied."""
    weights, places = model_files.weights(folder), {folder, *model_files.module_folders(folder)}
    for path in (path for name in sizes if (path := folder / name).parent in places):
        named = "adapter" in path.name and path.suffix in HEAVY
        unopened = path.suffix == ".safetensors" and path not in weights
        if named or path.name == "adapter_config.json" or (unopened and _is_adapter(path)):
            accepted = "a model without an adapter; {} is one, and is not applied: "
            advice = "merge it (peft's merge_and_unload()) and save the model"
            raise Unsafe(accepted + advice, path.relative_to(folder).as_posix())


def _is_adapter(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as tensors:
            return any(".lora_" in name or "lora_A" in name for name in tensors.keys())
    except (SafetensorError, OSError):
        return False


def _content(
    folder: Path, sizes: Sizes, documents: Documents, places: list[str]
) -> tuple[int, int]:
    """Tensors and bytes of the weights that are opened. Refuses a folder whose library would find pickles and no safetensors."""
    names = _shards(sizes, documents)
    names |= {n for n in sizes if n.endswith(".safetensors") and _is_opened(n, places)}
    if not names:
        pickles = [name for name in sizes if name.endswith(PICKLES) or _is_pickle(folder / name)]
        if pickles:
            raise Unsafe(ONLY_PICKLES, "this one", pickles[0])
        raise Unsafe("weights in safetensors; this one has no weights")
    beside: dict[PurePosixPath, list[str]] = {}
    for path in map(PurePosixPath, sizes):
        beside.setdefault(path.parent, []).append(path.name)
    for place in places:
        files = beside.get(PurePosixPath(place), [])
        pickles = [name for name in files if PICKLED.fullmatch(name)]
        if pickles and not any(map(SAFE.fullmatch, files)):
            raise Unsafe(ONLY_PICKLES, place or "this one", pickles[0])
    size = sum(sizes[name] for name in names)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        accepted = "weights that fit into the {} MB of memory here; this one's have {} MB"
        raise Unsafe(accepted, f"{memory // 10**6:,}", f"{size // 10**6:,}")
    return sum(_tensors(folder / name, name) for name in sorted(names)), size


def _shards(sizes: Sizes, documents: Documents) -> set[str]:
    """Safetensors files that an index or config.json names; `documents` made sure that they lie inside."""
    named: dict[tuple[str, str], None] = {}
    for file, document in documents.items():
        if file.endswith(".safetensors.index.json"):
            names = document.get("weight_map") if isinstance(document, dict) else None
            if not isinstance(names, dict):
                raise Unsafe(MALFORMED, file)
            named |= dict.fromkeys((file, name) for name in names.values())
    if name := documents.get("config.json", {}).get("transformers_weights"):
        named["config.json", name] = None
    paths = set()
    for file, name in named:
        paths.add(path := str(PurePosixPath(file).parent / name))
        if not path.endswith((".safetensors", ".safetensors.index.json")):
            accepted = "weights in safetensors; {} has a library read {}, which could be a pickle"
            raise Unsafe(accepted, file, name)
        if path not in sizes:
            accepted = "a model with all of its files; {} names {}, which is not there"
            raise Unsafe(accepted, file, name)
    return {path for path in paths if path.endswith(".safetensors")}


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return PICKLE.match(file.read(64)) is not None


def _tensors(path: Path, name: str) -> int:
    """Number of tensors by the header, which must fit the file."""
    from safetensors import safe_open

    if _is_pickle(path):
        raise Unsafe("weights in safetensors; {} is a pickle, which could run code", name)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    try:
        if header > HEADER:
            raise ValueError(f"a header of {header:,} bytes")
        with safe_open(path, "np") as tensors:
            return len(tensors.keys())
    except Exception as error:  # SafetensorError has no public base; OSError of an empty file
        raise Unsafe("weights in safetensors; {} does not open ({})", name, error) from None


def _check_size(where: str, value: Any, most: float) -> None:
    for size in value if isinstance(value, list) else [value]:
        if isinstance(size, int | float) and not isinstance(size, bool) and most < size:
            accepted = "sizes that fit the weights; the {} is {}, with room for at most {}"
            raise Unsafe(accepted, where, size, f"{most:,}")


def _most(key: str, owner: dict, tensors: int, size: int) -> float:
    """The largest value of a key of a configuration, for weights of so many tensors and bytes."""
    if LAYERS.search(key):
        return max(tensors, FEW)
    if LENGTHS.search(key):
        return max(size, POSITIONS)
    if key in SQUARED:
        return int((PER_BYTE * size) ** 0.5)
    rows = owner.get("out_features")
    if key == "in_features" and isinstance(rows, int) and rows > 0:  # of a Dense module
        return PER_BYTE * size // rows
    return PER_BYTE * size if re.search(WIDTHS, key) else float("inf")
