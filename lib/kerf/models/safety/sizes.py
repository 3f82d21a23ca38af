"""Sizes in a configuration, held against the weights: a network that they cannot fill would take hours or all memory to build."""

import re
from pathlib import PurePosixPath

from kerf.models.safety.parsed import walk
from kerf.models.safety.unsafe import Unsafe, shown
from kerf.models.safety.weights import Held, is_opened

FEW = 1024  # layers that any network may ask for: they are built in a moment
POSITIONS = 2**25  # rotary positions take no weights; ten million is the most in use
SQUARED = (
    "hidden_size",
    "d_model",
    "n_embd",
)  # a network has a matrix of this many rows and about as many columns
PER_BYTE = 8  # weights in a byte, for those packed at one bit

LAYERS = re.compile(r"layers?$|^n_layer|layers_|depths?$|blocks?$|experts?$|stages?$")
WIDTHS = re.compile(
    r"size$|sizes$|dims?$|dimensions?$|width$|channels?$|features$|heads?$|labels$|groups?$|rank$|n_embd|n_inner|d_model|d_ff|d_kv|ffn"
)
LENGTHS = re.compile(
    r"positions?$|position_embeddings$|n_ctx$|seq_len$|seq_length$|context_length$"
)


def check(documents: dict[str, object], opened: list[str], held: Held) -> None:
    """Raises Unsafe for a size that the weights have no room for, by its key."""
    for file, content in documents.items():
        if PurePosixPath(file).name == "config.json" and is_opened(file, opened):
            for key, value, owner in walk(content):
                for size in value if isinstance(value, list) else [value]:
                    if (
                        isinstance(size, int | float)
                        and not isinstance(size, bool)
                        and (most := _most(key, owner, held)) < size
                    ):
                        told_size = shown(f"{key} of {file}", 120)
                        raise Unsafe(
                            f"sizes that fit the weights; the {told_size} is {shown(size, 24)}, with room for at most {most:,}"
                        )


def _most(key: str, owner: dict, held: Held) -> float:
    if LAYERS.search(key):
        return max(held.tensors, FEW)
    if LENGTHS.search(key):
        return max(held.bytes, POSITIONS)
    if key in SQUARED:
        return int((PER_BYTE * held.bytes) ** 0.5)
    if (
        key == "in_features" and isinstance(out := owner.get("out_features"), int) and out > 0
    ):  # of a Dense module
        return PER_BYTE * held.bytes // out
    return PER_BYTE * held.bytes if WIDTHS.search(key) else float("inf")
