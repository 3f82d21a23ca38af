"""Whether a model has all of its tensors: transformers draws those that a file lacks at random, and skips those it does not know.

The library's own report decides, which knows tied heads, renamed tensors and buffers that old files hold. Beyond it, a pooler that
no embedding passes through may be missing, and the head of another class of the architecture may be present.
"""

import inspect
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kerf.core.errors import refuse
from kerf.models import model_files

SHOWN = 3  # names in a refusal
FLOATS = ("F64", "F32", "F16", "BF16")
_LOCK = threading.RLock()  # the report of transformers is patched for the whole process


def open_complete(folder: Path, opening: Callable[[], Any]) -> Any:
    """The model that `opening` opens of `folder`. Raises InputError naming missing, unexpected and wrongly shaped tensors."""
    import torch

    reports = []

    # transformers passes its arguments by name.
    def keep(model: Any, pretrained_model_name_or_path: Any, loading_info: Any, **_: Any) -> None:
        reports.append((model, pretrained_model_name_or_path is None, loading_info))

    patched = patch("transformers.modeling_utils.log_state_dict_report", keep)
    with _LOCK, torch.random.fork_rng(devices=[]), patched:
        # A pooler that may be missing is the same in every process.
        torch.default_generator.manual_seed(0)
        opened = opening()
    faults = _wrong_types(folder)
    for net, is_packed, report in reports:
        faults += _faults(opened, net, is_packed, report)
    if faults:
        accepted = f"weights that fit the configuration; {'; '.join(faults)}"
        raise refuse("model", str(folder), accepted)
    return opened


def _faults(opened: Any, net: Any, is_packed: bool, report: Any) -> list[str]:
    """What is wrong with the tensors of `net`, which is `opened` or a part of it."""
    extra = sorted(report.unexpected_keys)
    if is_packed:  # real kernels store a bias for layers that have none
        modules = list(net.named_modules())
        none = {f"{name}.bias" for name, layer in modules if getattr(layer, "bias", 0) is None}
        extra = [name for name in extra if name not in none]
    if extra:
        heads = _heads(net)
        extra = [name for name in extra if name.partition(".")[0] not in heads]
    missing = [name for name in report.missing_keys if not _is_unused_pooler(opened, name)]
    shapes = [f"{name} {list(a)} for {list(b)}" for name, a, b in report.mismatched_keys]
    return [
        *_listed(missing, "missing"),
        *_listed(extra, "unexpected"),
        *_listed(shapes, "of another shape"),
        *_listed([*report.error_msgs, *report.conversion_errors], "not readable"),
    ]


def _listed(names: list[str], kind: str) -> list[str]:
    """A line for the tensors of a kind of fault, if there are any."""
    shown = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return [f"{len(names)} {kind} ({shown})"] if names else []


def _is_unused_pooler(opened: Any, name: str) -> bool:
    from sentence_transformers import SentenceTransformer

    is_encoder = name.startswith("pooler.") and isinstance(opened, SentenceTransformer)
    return is_encoder and "pooler" not in str(opened[0].modality_config)


def _heads(net: Any) -> set[str]:
    """First parts of names of tensors that other classes of the architecture have beside the base model, as `cls` and `lm_head`."""
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import logging

    parts: set[str] = set()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    for _, other in inspect.getmembers(sys.modules[type(net).__module__], inspect.isclass):
        same_base = getattr(other, "base_model_prefix", None) == net.base_model_prefix
        if issubclass(other, PreTrainedModel) and same_base:
            # A class for another configuration of the architecture may raise anything.
            with suppress(Exception), torch.device("meta"):
                parts |= {name.partition(".")[0] for name in other(net.config).state_dict()}
    logging.set_verbosity(verbosity)
    base = {name.partition(".")[0] for name in net.base_model.state_dict()}
    return parts - base - {net.base_model_prefix}


def _wrong_types(folder: Path) -> list[str]:
    """Tensors of the weight files that hold integers in the place of weights."""
    from safetensors import SafetensorError, safe_open

    types: dict[str, str] = {}
    for path in model_files.weights(folder):
        try:
            with safe_open(path, "np") as tensors:
                names = [name for name in tensors.keys() if name.endswith((".weight", ".bias"))]
                types |= {name: tensors.get_slice(name).get_dtype() for name in names}
        except SafetensorError:
            return [f"{path.name} is no safetensors file"]
    wrong = [f"{name} {dtype}" for name, dtype in types.items() if dtype not in FLOATS]
    return _listed(wrong, "of another type than float")
