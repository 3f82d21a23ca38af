"""How everything in a model directory is opened: without network, without the model's own code, and with all of its tensors.

transformers draws tensors that a file lacks at random, and skips those it does not know. Its own report decides whether a model is
complete: it knows tied heads, renamed tensors and buffers that old files hold. Beyond it, a pooler that no embedding passes through
may be missing, and the head of another class of the architecture may be present.
"""

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kerf.core.cache import artifact, threads
from kerf.core.digests import sha256
from kerf.core.errors import InputError, printable, refuse
from kerf.models import model_files

LISTED = ("SentenceTransformer", "CrossEncoder")  # classes of sentence-transformers
SHOWN = 3  # names in a refusal
FLOATS = ("F64", "F32", "F16", "BF16")
_LOCK = threading.RLock()  # the report of transformers is patched for the whole process


def from_folder(class_name: str, folder: Path | str, **options: Any) -> Any:
    """An object of a class of transformers (or SentenceTransformer, CrossEncoder), opened from `folder` or from a `state_dict`.

    `trust_remote_code=False` is explicit, since transformers asks on standard input where it is left out.
    Raises InputError for what does not open.
    """
    options |= {"trust_remote_code": False, "local_files_only": True}
    library = "sentence-transformers" if class_name in LISTED else "transformers"
    try:
        kind = getattr(import_module(library.replace("-", "_")), class_name)
        if class_name in LISTED:
            return kind(str(folder), **options)
        opened = kind.from_pretrained(None if "state_dict" in options else str(folder), **options)
        if class_name == "GenerationConfig":
            vars(opened).pop("trust_remote_code", None)  # it stores every argument as a setting
        return opened
    except InputError:
        raise
    except Exception as error:  # names of tensors stand below the first line
        cause = printable(" ".join(f"{type(error).__name__}: {error}".split()), 160)
        raise refuse("model", str(folder), f"a model that {library} opens ({cause})") from error


@contextmanager
def loading(class_name: str, weights: dict) -> Iterator[None]:
    """Within the block, sentence-transformers opens a transformer of `class_name` with `weights`, whatever the files hold."""
    from sentence_transformers.base.modules.transformer import Transformer

    def load(self, name, task, config, *args, **options):
        # from_pretrained takes either a directory with weights or a state dict, and ours are packed.
        ours = {"config": config, "state_dict": weights, "dtype": "float32"}
        return from_folder(class_name, name, **{**options, **ours, "use_safetensors": None})

    with patch.object(Transformer, "_load_model", load):
        yield


def open_weights(class_name: str, folder: Path, **options: Any) -> Any:
    """A model in evaluation mode. Raises InputError as `from_folder` does, and naming tensors that are missing or do not fit."""
    import torch
    from transformers.utils import logging

    reports = []

    # transformers passes its arguments by name.
    def keep(model: Any, pretrained_model_name_or_path: Any, loading_info: Any, **_: Any) -> None:
        reports.append((model, pretrained_model_name_or_path is None, loading_info))

    logging.disable_progress_bar()
    torch.set_num_threads(threads())
    patched = patch("transformers.modeling_utils.log_state_dict_report", keep)
    with _LOCK, torch.random.fork_rng(devices=[]), patched:
        # A pooler that may be missing is the same in every process.
        torch.default_generator.manual_seed(0)
        opened = from_folder(class_name, folder, **options)
    needs_pooler = True
    if class_name == "SentenceTransformer":
        needs_pooler = "pooler" in str(getattr(opened[0], "modality_config", "pooler"))
    faults = _wrong_types(folder)
    for report in reports:
        faults += _faults(*report, needs_pooler)
    if faults:
        accepted = f"weights that fit the configuration; {'; '.join(faults)}"
        raise refuse("model", str(folder), accepted)
    return opened.eval()


def _faults(net: Any, is_packed: bool, report: Any, needs_pooler: bool) -> list[str]:
    """What is wrong with the tensors of `net`, an opened model or a part of it."""
    extra, missing = sorted(report.unexpected_keys), report.missing_keys
    if is_packed:  # real kernels store a bias for layers that have none
        modules = net.named_modules()
        none = {f"{name}.bias" for name, layer in modules if getattr(layer, "bias", 0) is None}
        extra = [name for name in extra if name not in none]
    if extra:
        heads = _heads(net)
        extra = [name for name in extra if name.partition(".")[0] not in heads]
    if not needs_pooler:
        missing = [name for name in missing if not name.startswith("pooler.")]
    shapes = [f"{name} {list(a)} for {list(b)}" for name, a, b in report.mismatched_keys]
    return [
        *_listed(missing, "missing"),
        *_listed(extra, "unexpected"),
        *_listed(shapes, "of another shape"),
        *_listed([*report.error_msgs, *report.conversion_errors], "not readable"),
    ]


def _listed(names: Any, kind: str) -> list[str]:
    """A line for the tensors of a kind of fault, if there are any."""
    shown = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return [f"{len(names)} {kind} ({shown})"] if names else []


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

    wrong = {}
    for path in model_files.weights(folder):
        try:
            with safe_open(path, "np") as tensors:
                for name in tensors.keys():
                    is_weight = name.endswith((".weight", ".bias"))
                    if is_weight and (dtype := tensors.get_slice(name).get_dtype()) not in FLOATS:
                        wrong[name] = f"{name} {dtype}"
        except SafetensorError:
            return [f"{path.name} is no safetensors file"]
    return _listed(wrong.values(), "of another type than float")


def converted(folder: Path) -> Path:
    """Artifact with a model directory (config.json, model.safetensors, tokenizer) of the folder's model.gguf, in float32, since
    transformers opens safetensors a hundred times faster."""
    path = folder / "model.gguf"
    make = partial(_convert, path=path)
    return artifact("converted", {"sha256": sha256(path)}, make, code=[Path(__file__)])


def _convert(folder: Path, path: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    packed = from_folder("AutoModelForCausalLM", path.parent, dtype="float32", gguf_file=path.name)
    config, weights = packed.config, packed.state_dict()
    del config.quantization_config  # transformers would take the float weights for packed ones
    for key in ("_name_or_path", "_model_name_or_path"):
        config.__dict__.pop(key, None)
    plain = type(packed)(config)
    plain.load_state_dict(weights)
    plain.save_pretrained(folder)
    from_folder("AutoTokenizer", path.parent, gguf_file=path.name).save_pretrained(folder)
