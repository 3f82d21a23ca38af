"""Whether a model has all of its tensors: transformers draws those that a file lacks at random, and leaves out what it does not know.

What counts is the library's own report, which knows tied heads, renamed tensors and buffers that old files hold. Beyond it, a
pooler that no embedding goes through may be missing, and the head of another class of the family may be there.
"""

import inspect
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from unittest.mock import patch

from kerf.core.errors import refuse
from kerf.models import model_files

SHOWN = 3  # names in a refusal
FLOATS = ("F64", "F32", "F16", "BF16")
_ONE = threading.RLock()  # what transformers reports is caught for the whole process


def refuse_incomplete(opening: Callable) -> Callable:
    """Decorate a function that opens a model of `folder`, its parameter: InputError names missing, unexpected and wrongly shaped tensors."""

    @wraps(opening)
    def checked(*args, **kwargs):
        import torch

        folder = inspect.signature(opening).bind(*args, **kwargs).arguments["folder"]
        reports = []

        def keep(
            model, pretrained_model_name_or_path, ignore_mismatched_sizes, loading_info, logger=None
        ):
            reports.append((model, pretrained_model_name_or_path is None, loading_info))

        with (
            _ONE,
            torch.random.fork_rng(devices=[]),
            patch("transformers.modeling_utils.log_state_dict_report", keep),
        ):
            torch.default_generator.manual_seed(
                0
            )  # a pooler that is rightly missing is the same in every process
            opened = opening(*args, **kwargs)
        faults = _odd_types(folder)
        for net, packed, found in reports:
            faults += _faults(opened, net, packed, found)
        if faults:
            raise refuse(
                "model", str(folder), f"weights that fit the configuration; {'; '.join(faults)}"
            )
        return opened

    return checked


def _faults(opened, net, packed: bool, found) -> list[str]:
    shapes = [
        f"{name} {list(there)} for {list(wanted)}"
        for name, there, wanted in sorted(found.mismatched_keys)
    ]
    missing = sorted(name for name in found.missing_keys if not _is_unused_pooler(opened, name))
    extra = sorted(found.unexpected_keys)
    if packed:  # real kernels keep a bias for layers that have none
        extra = [name for name in extra if not _is_bias_of_none(net, name)]
    if extra:
        heads = _heads(net)
        extra = [name for name in extra if name.partition(".")[0] not in heads]
    broken = sorted([*found.error_msgs, *found.conversion_errors])
    kinds = {
        "missing": missing,
        "unexpected": extra,
        "of another shape": shapes,
        "not readable": broken,
    }
    return [f"{len(names)} {kind} ({_listed(names)})" for kind, names in kinds.items() if names]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _is_unused_pooler(opened, name: str) -> bool:
    from sentence_transformers import SentenceTransformer

    return (
        name.startswith("pooler.")
        and isinstance(opened, SentenceTransformer)
        and "pooler" not in str(opened[0].modality_config)
    )


def _is_bias_of_none(net, name: str) -> bool:
    layer, _, last = name.rpartition(".")
    modules = dict(net.named_modules())
    return last == "bias" and layer in modules and getattr(modules[layer], "bias", 0) is None


def _heads(net) -> set[str]:
    """First parts of names of tensors that other classes of the family have beside the base model, such as `cls` and `lm_head`."""
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import logging

    found, told = set(), logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        for _, family in inspect.getmembers(sys.modules[type(net).__module__], inspect.isclass):
            if (
                issubclass(family, PreTrainedModel)
                and family.base_model_prefix == net.base_model_prefix
            ):
                with torch.device("meta"):
                    found |= _first_parts(family, net.config)
    finally:
        logging.set_verbosity(told)
    return found - {
        net.base_model_prefix,
        *(name.partition(".")[0] for name in net.base_model.state_dict()),
    }


def _first_parts(family, config) -> set[str]:
    try:
        return {name.partition(".")[0] for name in family(config).state_dict()}
    except Exception:  # a class for another configuration of the family
        return set()


def _odd_types(folder: str | Path) -> list[str]:
    """Tensors of the weight files that hold whole numbers in the place of weights."""
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in model_files.weights(Path(folder)):
        try:
            with safe_open(path, "np") as file:
                types = {
                    name: file.get_slice(name).get_dtype()
                    for name in file.keys()
                    if name.endswith((".weight", ".bias"))
                }
        except SafetensorError:
            return [f"{path.name} is no safetensors file"]
        found |= {name: kind for name, kind in types.items() if kind not in FLOATS}
    names = [f"{name} {kind}" for name, kind in sorted(found.items())]
    return [f"{len(names)} of another type than float ({_listed(names)})"] if names else []
