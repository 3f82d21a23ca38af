"""The JSON files of a model's directory, read with bounds, and the code that they name, which a library would import.

A model that the installed library has a class for opens with that class, and its own code is ignored; code that cannot be ignored
without changing what the model computes is refused.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from kerf.core.digests import read_json
from kerf.core.errors import printable
from kerf.models.safety.tree import OUTSIDE, SHOWN, Unsafe, check_inside

LARGEST = 16_000_000  # bytes of one; an index of a hundred thousand tensors has ten million
TOTAL = 64_000_000  # of all of them
VOCABULARIES = ("tokenizer.json", "vocab.json")  # name no code; large ones are skipped
UNREAD = "trainer_state.json"  # of checkpoints of a training, which no library opens
MALFORMED = "a {} in the form that its library writes"
LISTED = 20  # names of ignored code, at most
NO_CODE = "a model without code of its own"
OWN_CODE = ("auto_map", "custom_pipelines", "custom_generate")
MODULE = re.compile(
    r"sentence_transformers\.(?:\w+\.)*(?:models|modules)\.(?:\w+\.)*(?:Asym|BoW|CLIPModel|CNN|Dense|Dropout"
    r"|LSTM|LayerNorm|LogitScore|MLMTransformer|MultiVectorMask|Normalize|Pooling|Router|SparseAutoEncoder"
    r"|SparseStaticEmbedding|SpladePooling|StaticEmbedding|Transformer|WeightedLayerPooling|WordEmbeddings|WordWeights)"
)
ACTIVATION = re.compile(r"[^.]*|torch\.nn\.(?:modules\.\w+\.)?[A-Z]\w*")
TOKENIZER = re.compile(r"\w+|sentence_transformers\.(?:\w+\.)*tokenizer\.(?:\w+\.)*\w+Tokenizer")
PLAIN = re.compile(r"[\w-]+(?:\|[\w-]+)*")  # sdpa, flash_attention_2, paged|eager
OWN_LIBRARY = re.compile(r"(?:transformers|sentence_transformers)(?:\..*)?", re.DOTALL)
# Keys whose value a library imports, the files that they count in, and the names that are accepted there.
IMPORTED = (
    (re.compile(r"\Atype\Z"), "modules.json", MODULE),
    (re.compile(r"activation|hidden_act\Z|act_fn\Z"), "", ACTIVATION),
    (re.compile(r"\Atokenizer_class\Z"), "", TOKENIZER),
    (re.compile(r"_implementation\Z"), "", PLAIN),  # of attention, experts, ...
    (re.compile(r"\Aparent_library\Z"), "", OWN_LIBRARY),  # of an adapter
)
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
    names = []
    for name, size in sizes.items():
        last = PurePosixPath(name).name
        if not last.endswith(".json") or last == UNREAD:
            continue
        if size <= LARGEST:
            names.append(name)
        elif last not in VOCABULARIES:
            accepted = "configuration of at most {} MB a file; {} has {} MB"
            raise Unsafe(accepted, LARGEST // 10**6, name, f"{size // 10**6:,}")
    if (total := sum(sizes[name] for name in names)) > TOTAL:
        accepted = "at most {} MB of JSON; this directory has {} MB"
        raise Unsafe(accepted, TOTAL // 10**6, f"{total // 10**6:,}")
    documents = {}
    for name in names:
        try:
            documents[name] = read_json(folder / name)
            if name in FORMS:
                FORMS[name].validate_python(documents[name])
        except ValidationError:  # a ValueError
            raise Unsafe(MALFORMED, name) from None
        except (OSError, ValueError) as error:
            raise Unsafe(MALFORMED + " ({})", name, error) from None
    return documents


def walk(content: Any) -> Iterator[tuple[str, Any, dict]]:
    """Key, value and owner of every entry of every object in a document, however deep it lies."""
    waiting: list[Any] = [[content]]
    while waiting:
        node = waiting.pop()
        values = list(node.values()) if isinstance(node, dict) else node
        if isinstance(node, dict):
            yield from ((key, value, node) for key, value in node.items())
        waiting += [value for value in values if isinstance(value, dict | list)]


def ignored_code(documents: Documents) -> list[str]:
    """Names of the code that is ignored, with their files. Raises Unsafe for a name that a library would follow."""
    ignored: dict[str, None] = {}
    for file, content in documents.items():
        for key, value, owner in walk(content):
            _check_entry(file, key, value, owner)
            if key in OWN_CODE and (names := list(_texts(value))):
                _check_known(documents, file, names[0])
                for name in names[:LISTED]:
                    ignored[f"{printable(name, SHOWN)} ({printable(file, SHOWN)})"] = None
    return list(ignored)[:LISTED]


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, at any depth, but for empty ones."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _check_known(documents: Documents, file: str, name: str) -> None:
    """Refuse code of a model whose type the installed library has no class for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    beside = str(PurePosixPath(file).with_name("config.json"))
    config = documents.get(beside, documents.get("config.json"))
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING_NAMES:
        accepted = NO_CODE + ", or of a type that transformers knows; this one would run {}"
        raise Unsafe(accepted, name)


def _check_entry(file: str, key: str, value: Any, owner: dict) -> None:
    """Refuse a name that a library would import, but for those of its own classes, and a path that leaves the directory."""
    name, where = PurePosixPath(file).name, f"{key} of {file}"
    for keys, only_file, accepted in IMPORTED:
        if keys.search(key) and only_file in ("", name):
            values = _texts(value) if key.endswith("_implementation") else [value]
            _check_names(values, accepted, where)
    paths: Iterable = ()
    in_router = name == "router_config.json" or "structure" in owner
    if key == "types" and isinstance(value, dict) and in_router:
        _check_names(value.values(), MODULE, where)
        paths = value
    elif (key == "path" and name == "modules.json") or key == "transformers_weights":
        paths = ["" if value is None else value]
    elif key in ("fast_tokenizer_files", "weight_map"):
        if not isinstance(value, dict | list):
            raise Unsafe("files by their names in the {}", where)
        paths = value.values() if isinstance(value, dict) else value
    elif key.endswith(("_args", "_kwargs")) and name.startswith("sentence_"):
        for text in _texts(value):  # transformers would open files, kernels or repositories
            if set(text) & set("/\\") or text == "..":
                raise Unsafe(OUTSIDE + "names {}", where, text)
    for path in paths:
        check_inside(path, where)


def _check_names(names: Iterable, accepted: re.Pattern[str], where: str) -> None:
    for name in names:
        if isinstance(name, str) and name and not accepted.fullmatch(name):
            raise Unsafe(NO_CODE + "; this one would run {}, the {}", name, where)
