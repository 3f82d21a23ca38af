"""The JSON files of a model's directory, read with bounds."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from kerf.models.safety.tree import Unsafe

LARGEST = 16_000_000  # bytes of one; an index of a hundred thousand tensors has ten million
TOTAL = 64_000_000  # of all of them
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
)  # name nothing that is imported; large ones are skipped
UNREAD = "trainer_state.json"  # of checkpoints of a training, which no library opens
MALFORMED = "a {} in the form that its library writes"

# By path relative to the model's directory: bytes of all files, and parsed JSON.
Sizes = dict[str, int]
Documents = dict[str, Any]


class _Config(BaseModel):
    architectures: list[str] | None = None
    model_type: str = ""


class _Module(BaseModel):
    type: str
    path: str


FORMS: dict[str, TypeAdapter] = {
    "config.json": TypeAdapter(_Config),
    "modules.json": TypeAdapter(list[_Module]),
}


def read(folder: Path, sizes: Sizes) -> Documents:
    """Contents by path. Raises Unsafe for one that is not the JSON that libraries write."""
    names = [name for name in sizes if name.endswith(".json") and _is_read(name, sizes[name])]
    if (total := sum(sizes[name] for name in names)) > TOTAL:
        accepted = "at most {} MB of JSON; this directory has {} MB"
        raise Unsafe(accepted, TOTAL // 10**6, f"{total // 10**6:,}")
    documents = {name: _parsed(folder / name, name) for name in names}
    for name in FORMS.keys() & documents.keys():
        try:
            FORMS[name].validate_python(documents[name])
        except ValidationError:
            raise Unsafe(MALFORMED, name) from None
    return documents


def _is_read(name: str, size: int) -> bool:
    last = PurePosixPath(name).name
    if size > LARGEST and last not in (*VOCABULARIES, UNREAD):
        accepted = "configuration of at most {} MB a file; {} has {} MB"
        raise Unsafe(accepted, LARGEST // 10**6, name, f"{size // 10**6:,}")
    return size <= LARGEST and last != UNREAD


def _parsed(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_bytes().decode())
    except RecursionError:
        cause = "nested too deeply"
    except UnicodeDecodeError:
        cause = "not UTF-8"
    except ValueError as error:  # also of a number with more digits than Python reads
        cause = str(error)
    raise Unsafe(MALFORMED + " ({})", name, cause)


def walk(content: Any) -> Iterator[tuple[str, Any, dict]]:
    """Key, value and owner of every entry of every object in a document, however deep it lies."""
    waiting: list[Any] = [[content]]
    while waiting:
        node = waiting.pop()
        values = list(node.values()) if isinstance(node, dict) else node
        if isinstance(node, dict):
            yield from ((key, value, node) for key, value in node.items())
        waiting += [value for value in values if isinstance(value, dict | list)]
