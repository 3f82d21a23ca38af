"""Linear layers that something else quantized: a GPTQ checkpoint of this model, or one that gptqmodel makes of it.

gptqmodel needs packages that Kerf's environment cannot have, so it runs in one of its own (`make peers`),
on the same calibration tokens. Word embeddings are rounded by Kerf, as the step says, on either way.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from kerf.calibration.offload import park
from kerf.config import Calibration
from kerf.config.quantize import Quantize
from kerf.core import child_process
from kerf.core.cache import artifact, meta, threads
from kerf.core.digests import sha256
from kerf.core.errors import InputError, refuse
from kerf.core.paths import root
from kerf.core.scratch import scratch
from kerf.data import corpora
from kerf.formats import gptq_checkpoint
from kerf.models import architecture, families, registry
from kerf.quantize.compress import embedding


def check(model: str, step: Quantize, first: bool) -> None:
    """Refuse, before heavy work, what `adopted` could not take."""
    if not first:
        raise refuse("method", step.method, "a first step: it starts from the float model")
    if families.name_of(registry.resolve(model)) != "causal":
        raise refuse(
            "method", step.method, "a causal language model to work on, or one of rtn and gptq"
        )
    if step.method == "gptqmodel" and not python().is_file():
        raise refuse(
            "method",
            step.method,
            f"an environment for it: `make peers` ({python().parent.parent} has none)",
        )
    if step.method == "checkpoint":
        _open(step, _resolved(step)).check(registry.describe(model)["linears"])


def fingerprint(step: Quantize, calibration: Calibration) -> dict:
    """What the layers depend on beside the model and the step's own keys."""
    if step.method == "checkpoint":
        return {"checkpoint": registry.weights_digest(_resolved(step))}
    pins = _script().with_name("gptqmodel.txt")
    return {
        "script": sha256(_script()),
        "pins": sha256(pins),
        "texts": corpora.digest(calibration.texts),
    }


def _resolved(step: Quantize) -> Path:
    try:
        return registry.resolve(step.checkpoint)
    except InputError as refusal:
        raise InputError(re.sub("^model =", "checkpoint =", str(refusal))) from None


def _script() -> Path:
    return root() / "environments" / "run_gptqmodel.py"


def folder_of(model: str, step: Quantize, calibration: Calibration) -> Path:
    """Directory of the checkpoint that a step names, or has gptqmodel make."""
    if step.method == "checkpoint":
        return _resolved(step)
    key = {
        "model": registry.weights_digest(registry.resolve(model)),
        "calibration": calibration.model_dump(),
    }
    asked = {
        "bits": step.bits,
        "group_size": step.group_size or -1,
        "sym": step.symmetric,
        "act_order": step.act_order,
    }
    key |= {**asked, **fingerprint(step, calibration)}
    return artifact(
        "gptqmodel",
        key,
        lambda folder: _run(folder, model, asked, calibration),
        code=[Path(__file__)],
    )


def cost(folder: Path, step: Quantize) -> tuple[float, int]:
    """Seconds and peak memory of what was done elsewhere; of a checkpoint that was there, none."""
    figures = (
        meta(folder)["result"]
        if step.method == "gptqmodel"
        else {"seconds": 0.0, "peak_rss_bytes": 0}
    )
    return figures["seconds"], figures["peak_rss_bytes"]


def _run(folder: Path, model: str, asked: dict, calibration: Calibration) -> dict:
    batches = families.of(registry.resolve(model)).batches(registry.open_model(model), calibration)
    tokens = [row for batch in batches for row in batch["input_ids"].tolist()]
    request = {
        "model": str(registry.resolve(model)),
        "tokens": tokens,
        "threads": threads(),
        **asked,
    }
    (folder / "request.json").write_text(json.dumps(request))
    with scratch() as place:  # it writes logs where it stands
        command = [python(), _script(), folder / "request.json", folder]
        done = child_process.run(command, cwd=place)
    if done.returncode:
        raise RuntimeError(f"gptqmodel {child_process.how_it_ended(done)}")
    (folder / "request.json").unlink()
    return json.loads((folder / "figures.json").read_text())


def python() -> Path:
    """The interpreter of gptqmodel's environment, there or not."""
    return root() / ".venv-peers" / "gptqmodel" / "bin" / "python"


def _open(step: Quantize, folder: Path) -> gptq_checkpoint.Checkpoint:
    found = gptq_checkpoint.Checkpoint.open(folder)
    if found.bits != step.bits:
        raise refuse("bits", step.bits, f"{found.bits}, the bits of {folder}")
    if found.group_size != (step.group_size or -1):
        raise refuse(
            "group_size", step.group_size, f"{found.group_size}, that of {folder}; none for -1"
        )
    return found


def adopted(net, step: Quantize, folder: Path) -> Iterator[tuple[str, object, str]]:
    """Put the checkpoint's weights into `net`, and yield name, Quantized and a note of each layer; `check` came before.

    Raises InputError for a checkpoint of another model.
    """
    found = _open(step, folder)
    state, taken = net.state_dict(), dict(found.floats())
    for name, value in taken.items():
        if name not in state or state[name].shape != value.shape:
            raise refuse(
                "checkpoint",
                str(folder),
                f"a checkpoint of this model, which has no {name} of {list(value.shape)}",
            )
    tied = getattr(net, "all_tied_weights_keys", None) or {}
    for name, _ in net.named_parameters():
        packed = (
            f"{name.removesuffix('.weight')}.qweight" in found.files
            or f"{name.removesuffix('.bias')}.qweight" in found.files
        )
        if name not in found.files and name not in tied and not packed:
            raise refuse("checkpoint", str(folder), f"a checkpoint of this model, with {name}")
    net.load_state_dict(taken, strict=False)
    for name, layer in architecture.embeddings(net).items():
        if step.embedding_bits() < 32:
            quantized = embedding(name, layer, step)
            layer.weight.data = park(quantized.dequantize())
            yield name, quantized, ""
    for name, layer in architecture.linears(net).items():
        quantized = found.layer(name)
        if quantized is not None:
            layer.weight.data = park(quantized.dequantize())
            yield (
                name,
                quantized,
                f"quantized by {'gptqmodel' if step.method == 'gptqmodel' else 'whoever made the checkpoint'}",
            )
