"""The JSON files of a model's directory, read with bounds."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from kerf.models.safety.tree import Stamp
from kerf.models.safety.unsafe import Unsafe, shown

LARGEST = 16_000_000  # bytes of one; an index of a hundred thousand tensors has ten million
TOTAL = 64_000_000  # of all of them
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
)  # larger ones, which name nothing that is imported, are left to their library
UNREAD = ("trainer_state.json",)  # of checkpoints of a training, which no library opens


def documents(folder: Path, names: dict[str, Stamp]) -> dict[str, object]:
    """Contents by path. Raises Unsafe for one that is not the JSON that libraries write."""
    chosen = [
        name for name in names if name.endswith(".json") and _is_searched(name, names[name].bytes)
    ]
    if (total := sum(names[name].bytes for name in chosen)) > TOTAL:
        raise Unsafe(
            f"at most {TOTAL // 10**6} MB of JSON; this directory has {total // 10**6:,} MB"
        )
    found = {name: _read(folder / name, name) for name in chosen}
    for name in ("config.json", "modules.json"):
        _check_form(found, name)
    return found


def _is_searched(name: str, size: int) -> bool:
    last = PurePosixPath(name).name
    if size > LARGEST and last not in (*VOCABULARIES, *UNREAD):
        raise Unsafe(
            f"configuration of at most {LARGEST // 10**6} MB a file; {shown(name)} has {size // 10**6:,} MB"
        )
    return size <= LARGEST and last not in UNREAD


def _read(path: Path, name: str) -> object:
    try:
        return json.loads(path.read_bytes().decode())
    except RecursionError:
        cause = "nested too deeply"
    except UnicodeDecodeError:
        cause = "not UTF-8"
    except ValueError as error:  # of a number with more digits than Python reads, too
        cause = str(error)
    raise Unsafe(f"a {shown(name)} in the form that its library writes ({shown(cause)})")


def _check_form(found: dict[str, object], name: str) -> None:
    content = found.get(name, {} if name == "config.json" else [])
    if name == "config.json":
        names = content.get("architectures") or [] if isinstance(content, dict) else None
        right = isinstance(names, list) and all(isinstance(each, str) for each in names)
        right = right and isinstance(content.get("model_type", ""), str)
    else:
        right = isinstance(content, list) and all(isinstance(module, dict) for module in content)
        right = right and all(
            isinstance(module.get(key), str) for module in content for key in ("type", "path")
        )
    if not right:
        raise Unsafe(f"a {name} in the form that its library writes")


def walk(content: object) -> Iterator[tuple[str, object, dict]]:
    """Key, value and owner of every entry of every object in a document, however deep it lies."""
    waiting = [[content]]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from ((key, value, node) for key, value in node.items())
        waiting += [
            each
            for each in (node.values() if isinstance(node, dict) else node)
            if isinstance(each, dict | list)
        ]
