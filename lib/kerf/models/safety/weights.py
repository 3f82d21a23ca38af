"""Weights: safetensors that open, where the library looks for them, and no pickle that it would read."""

import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kerf.models.safety.tree import Stamp
from kerf.models.safety.unsafe import Unsafe, shown

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
HEADER = 25_000_000  # bytes; a hundred thousand tensors take ten million


class Held(NamedTuple):
    """What the weights that are opened hold."""

    tensors: int
    bytes: int


UNKNOWN = Held(0, 2**40)  # of a candidate, whose weights are packed


def opened_folders(documents: dict[str, object]) -> list[str]:
    """Folders that a library opens: the top ("") and those of the modules, with what lies below them."""
    modules = [str(PurePosixPath(module["path"])) for module in documents.get("modules.json", [])]
    return ["", *dict.fromkeys(path for path in modules if path != ".")]


def is_opened(name: str, opened: list[str]) -> bool:
    """Whether a library looks for the file."""
    return "/" not in name or name.startswith(tuple(f"{folder}/" for folder in opened if folder))


def check(
    folder: Path, names: dict[str, Stamp], documents: dict[str, object], opened: list[str]
) -> Held:
    """What the opened weights hold. Raises Unsafe for none, for pickles in their place and for what is no safetensors."""
    shards = _shards(names, documents)
    found = [
        name
        for name in names
        if name in shards or name.endswith(".safetensors") and is_opened(name, opened)
    ]
    if not found:
        pickles = [name for name in names if name.endswith(PICKLES) or _is_pickle(folder / name)]
        raise Unsafe(
            f"weights in safetensors; this one has {_only_pickles(pickles[0]) if pickles else 'no weights'}"
        )
    for place in opened:
        _check_pickles(place, names)
    total, memory = (
        sum(names[name].bytes for name in found),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
    if total > memory:
        raise Unsafe(
            f"weights that fit into the {memory // 10**6:,} MB of memory here; this one's have {total // 10**6:,} MB"
        )
    return Held(sum(_tensors(folder / name, name) for name in found), total)


def _only_pickles(name: str) -> str:
    return f"only pickles ({shown(name)}), which could run code"


def _shards(names: dict[str, Stamp], documents: dict[str, object]) -> set[str]:
    """Files that an index of safetensors names; `named_code` found them to lie inside."""
    found = set()
    for file, content in documents.items():
        if file.endswith(".safetensors.index.json"):
            values = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(values, dict):
                raise Unsafe(f"a {shown(file)} in the form that its library writes")
            found |= {_shard(file, value, names) for value in values.values()}
    if own := documents.get("config.json", {}).get("transformers_weights"):
        found.add(_shard("config.json", own, names))
    return {name for name in found if name.endswith(".safetensors")}


def _shard(file: str, value: str, names: dict[str, Stamp]) -> str:
    path = str(PurePosixPath(file).parent / value)
    if not path.endswith((".safetensors", ".safetensors.index.json")):
        raise Unsafe(
            f"weights in safetensors; {shown(file)} has a library read {shown(value)}, which could be a pickle"
        )
    if path not in names:
        raise Unsafe(
            f"a model with all of its files; {shown(file)} names {shown(value)}, which is not there"
        )
    return path


def _check_pickles(place: str, names: dict[str, Stamp]) -> None:
    """Refuse a folder whose library would find pickled weights and none in safetensors."""
    prefix = f"{place}/" if place else ""
    here = [
        name.removeprefix(prefix)
        for name in names
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    ]
    pickles = [
        name
        for name in here
        if name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json"))
    ]
    safe = [
        name
        for name in here
        if name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))
    ]
    if pickles and not safe:
        raise Unsafe(
            f"weights in safetensors; {shown(place) or 'this one'} has only pickles ({shown(pickles[0])}), which could run code"
        )


def _is_pickle(path: Path) -> bool:
    """By its first bytes: a pickle of any protocol, or the zip that torch writes."""
    with path.open("rb") as file:
        head = file.read(64)
    if (
        head[:4] == b"PK\x03\x04"
        or head[:1] == b"\x80"
        and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    ):
        return True
    module, _, rest = head.partition(b"\n")  # protocol 0 names what it calls in lines
    return (
        module[:1] == b"c"
        and module[1:].replace(b".", b"").replace(b"_", b"").isalnum()
        and b"\n" in rest
    )


def _tensors(path: Path, name: str) -> int:
    """Number of tensors by the header, which must fit the file."""
    from safetensors import safe_open

    if _is_pickle(path):
        raise Unsafe(f"weights in safetensors; {shown(name)} is a pickle, which could run code")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    try:
        if header > HEADER:
            raise ValueError(f"a header of {header:,} bytes")
        with safe_open(path, "np") as file:
            return len(file.keys())
    except Exception as error:  # SafetensorError has no public base; OSError of an empty file
        raise Unsafe(
            f"weights in safetensors; {shown(name)} does not open ({shown(error)})"
        ) from None
