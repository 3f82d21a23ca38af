"""Code that the JSON of a model's directory names, which a library would import or a user be asked to run.

A model that the installed library has a class for opens with that class, and its own code is ignored; what cannot be
ignored without changing what the model computes is refused.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from kerf.models.safety.parsed import walk
from kerf.models.safety.tree import inside
from kerf.models.safety.unsafe import Unsafe, shown

SHOWN = 20  # names, at most
OWN_CODE = ("auto_map", "custom_pipelines", "custom_generate")
MODULES = (
    "Asym",
    "BoW",
    "CLIPModel",
    "CNN",
    "Dense",
    "Dropout",
    "LSTM",
    "LayerNorm",
    "LogitScore",
    "MLMTransformer",
    "MultiVectorMask",
    "Normalize",
    "Pooling",
    "Router",
    "SparseAutoEncoder",
    "SparseStaticEmbedding",
    "SpladePooling",
    "StaticEmbedding",
    "Transformer",
    "WeightedLayerPooling",
    "WordEmbeddings",
    "WordWeights",
)
MODULE = re.compile(
    rf"sentence_transformers\.(?:\w+\.)*(?:models|modules)\.(?:\w+\.)*(?:{'|'.join(MODULES)})"
)
ACTIVATION = re.compile(r"torch\.nn\.(?:modules\.\w+\.)?[A-Z]\w*")
TOKENIZER = re.compile(r"\w+|sentence_transformers\.(?:\w+\.)*tokenizer\.(?:\w+\.)*\w+Tokenizer")
PLAIN = re.compile(r"[\w-]+(?:\|[\w-]+)*")  # sdpa, flash_attention_2, paged|eager


def check(documents: dict[str, object]) -> list[str]:
    """Names of the code that is ignored, with their files. Raises Unsafe for a name that a library would follow."""
    ignored: dict[str, None] = {}
    for file, content in documents.items():
        for key, value, owner in walk(content):
            _check_entry(file, key, value, owner)
            if key in OWN_CODE and (names := list(_names(value))):
                _check_known(documents, file, names[0])
                ignored |= dict.fromkeys(f"{shown(name)} ({shown(file)})" for name in names[:SHOWN])
    return list(ignored)[:SHOWN]


def _names(value: object) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _names(each)


def _check_known(documents: dict[str, object], file: str, name: str) -> None:
    """Refuse code of a model whose type the installed library has no class for."""
    beside = str(PurePosixPath(file).with_name("config.json"))
    config = documents.get(beside, documents.get("config.json"))
    kind = config.get("model_type") if isinstance(config, dict) else None
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if not isinstance(kind, str) or kind not in CONFIG_MAPPING_NAMES:
        raise Unsafe(
            f"a model without code of its own, or of a type that transformers knows; this one would run {shown(name)}"
        )


def _check_entry(file: str, key: str, value: object, owner: dict) -> None:
    where = shown(f"{key} of {file}", 120)
    name = PurePosixPath(file).name
    if key == "type" and name == "modules.json":
        _check_names([value], MODULE.fullmatch, where)
    elif (
        key == "types"
        and isinstance(value, dict)
        and (name == "router_config.json" or "structure" in owner)
    ):
        [inside(path, where) for path in value]
        _check_names(value.values(), MODULE.fullmatch, where)
    elif "activation" in key or key.endswith(("hidden_act", "act_fn")):
        _check_names([value], lambda text: "." not in text or ACTIVATION.fullmatch(text), where)
    elif key == "tokenizer_class":
        _check_names([value], TOKENIZER.fullmatch, where)
    elif key.endswith("attn_implementation") or key.endswith("_implementation"):
        _check_names(_names(value), PLAIN.fullmatch, where)
    elif key == "parent_library":  # of an adapter
        _check_names(
            [value],
            lambda text: text.partition(".")[0] in ("transformers", "sentence_transformers"),
            where,
        )
    elif key.endswith(("_args", "_kwargs")) and name.startswith("sentence_"):
        _check_arguments(value, where)
    elif (key == "path" and name == "modules.json") or key == "transformers_weights":
        inside("" if value is None else value, where)
    elif key == "fast_tokenizer_files" or key == "weight_map":
        [inside(path, where) for path in _listed(value, where)]


def _check_names(found, accepted: Callable[[str], object], where: str) -> None:
    for each in found:
        if isinstance(each, str) and each and not accepted(each):
            raise Unsafe(
                f"a model without code of its own; this one would run {shown(each)}, the {where}"
            )


def _check_arguments(value: object, where: str) -> None:
    """What sentence-transformers hands on to transformers must not name files, kernels or repositories."""
    for text in _names(value):
        if set(text) & set("/\\") or text == "..":
            raise Unsafe(
                f"a directory that does not reach outside itself; {where} names {shown(text)}"
            )


def _listed(value: object, where: str) -> list:
    if not isinstance(value, dict | list):
        raise Unsafe(f"files by their names in the {where}")
    return list(value.values() if isinstance(value, dict) else value)
