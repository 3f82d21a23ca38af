"""Linear layers quantized by other programs: a GPTQ checkpoint of the model, or one that gptqmodel makes of it.

gptqmodel needs packages that conflict with Kerf's, so it runs in an environment of its own (`make peers`), on the same
calibration tokens. Kerf itself quantizes the word embeddings.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kerf.calibration.offload import park
from kerf.config import Calibration
from kerf.config.quantize import Checkpoint as CheckpointStep
from kerf.config.quantize import Gptqmodel
from kerf.core import child_process
from kerf.core.cache import artifact, meta, threads
from kerf.core.digests import sha256
from kerf.core.errors import InputError, refuse
from kerf.core.paths import root
from kerf.core.scratch import scratch
from kerf.data import corpora
from kerf.formats.gptq_checkpoint import Checkpoint
from kerf.models import architecture, families, registry
from kerf.quantize.compress import embedding
from kerf.tensors.quantized import Quantized

Imported = CheckpointStep | Gptqmodel


def check(model: str, step: Imported, first: bool) -> None:
    """Refuse, before heavy work, what `adopted` could not take. first: no other step comes before."""
    if not first:
        raise refuse("method", step.method, "a first step: it starts from the float model")
    if families.name_of(registry.resolve(model)) != "causal":
        accepted = "a causal language model to work on, or one of rtn and gptq"
        raise refuse("method", step.method, accepted)
    if isinstance(step, CheckpointStep):
        _open(step, _resolve(step)).check(registry.describe(model)["linears"])
    elif not python().is_file():
        accepted = f"an environment for it: `make peers` ({python().parent.parent} has none)"
        raise refuse("method", step.method, accepted)


def fingerprint(step: Imported, calibration: Calibration) -> dict[str, str]:
    """The part of the cache key that is neither the model nor a key of the step."""
    if isinstance(step, CheckpointStep):
        return {"checkpoint": registry.weights_digest(_resolve(step))}
    pins = sha256(_script().with_name("gptqmodel.txt"))
    return {"script": sha256(_script()), "pins": pins, "texts": corpora.digest(calibration.texts)}


def _resolve(step: CheckpointStep) -> Path:
    try:
        return registry.resolve(step.checkpoint)
    except InputError as error:
        raise InputError(re.sub("^model =", "checkpoint =", str(error))) from None


def _script() -> Path:
    return root() / "environments" / "run_gptqmodel.py"


def python() -> Path:
    """The interpreter of gptqmodel's environment, which need not exist."""
    return root() / ".venv-peers" / "gptqmodel" / "bin" / "python"


def folder_of(model: str, step: Imported, calibration: Calibration) -> Path:
    """The checkpoint of a step: the one that it names, or the one that gptqmodel makes."""
    if isinstance(step, CheckpointStep):
        return _resolve(step)
    options = step.model_dump(include={"bits", "act_order"})
    options |= {"group_size": step.group_size or -1, "sym": step.symmetric}
    path = registry.resolve(model)
    key = {**options, "calibration": calibration.model_dump(), **fingerprint(step, calibration)}
    key["model"] = registry.weights_digest(path)

    def make(folder: Path) -> dict:
        batches = families.of(path).batches(registry.open_model(model, "cpu"), calibration)
        tokens = [row for batch in batches for row in batch["input_ids"].tolist()]
        settings = {"model": str(path), "tokens": tokens, "threads": threads(), **options}
        request = folder / "request.json"
        request.write_text(json.dumps(settings))
        with scratch() as logs:  # gptqmodel writes them into its working directory
            done = child_process.run([python(), _script(), request, folder], cwd=logs)
        if done.returncode:
            raise RuntimeError(f"gptqmodel {child_process.how_it_ended(done)}")
        request.unlink()
        return json.loads((folder / "figures.json").read_text())

    return artifact("gptqmodel", key, make, code=[Path(__file__)])


def cost(folder: Path, step: Imported) -> tuple[float, int]:
    """Seconds and peak memory (bytes) that gptqmodel took; zeros for a checkpoint that existed."""
    if isinstance(step, CheckpointStep):
        return 0.0, 0
    figures = meta(folder)["result"]
    return figures["seconds"], figures["peak_rss_bytes"]


def _open(step: Imported, folder: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(folder)
    if checkpoint.bits != step.bits:
        raise refuse("bits", step.bits, f"{checkpoint.bits}, the bits of {folder}")
    if checkpoint.group_size != (step.group_size or -1):
        accepted = f"{checkpoint.group_size}, that of {folder}; none for -1"
        raise refuse("group_size", step.group_size, accepted)
    return checkpoint


def adopted(net: Any, step: Imported, folder: Path) -> Iterator[tuple[str, Quantized, str]]:
    """Put the checkpoint's weights into `net`, and yield name, weight and a note for each layer; `check` came before.

    Raises InputError for a checkpoint of another model.
    """
    checkpoint = _open(step, folder)
    state, floats = net.state_dict(), dict(checkpoint.floats())
    for name, value in floats.items():
        if name not in state or state[name].shape != value.shape:
            raise checkpoint.refusal(f"which has no {name} of {list(value.shape)}")
    covered = {*checkpoint.files, *(getattr(net, "all_tied_weights_keys", None) or {})}
    for name, _ in net.named_parameters():
        if not {name, f"{name.rpartition('.')[0]}.qweight"} & covered:
            raise checkpoint.refusal(f"with {name}")
    net.load_state_dict(floats, strict=False)
    for name, layer in architecture.embeddings(net).items():
        if step.embedding_bits() < 32:
            quantized = embedding(name, layer, step)
            layer.weight.data = park(quantized.dequantize())
            yield name, quantized, ""
    author = "gptqmodel" if isinstance(step, Gptqmodel) else "the author of the checkpoint"
    for name, layer in architecture.linears(net).items():
        if weight := checkpoint.layer(name):
            layer.weight.data = park(weight.dequantize())
            yield name, weight, f"quantized by {author}"
