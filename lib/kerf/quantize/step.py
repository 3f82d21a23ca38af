"""The quantize step: a model or candidate in, a candidate with packed weights out.

Sequential methods (gptq) stream the calibration text through the model and through the float model beside it, and quantize
layers in the order they run, so that later layers compensate for earlier ones. Word embeddings come first, because every layer
reads them. Positions, biases and LayerNorm stay in `unquantized_dtype`. Linear layers may also come quantized from another
program (`kerf.formats.imported`). Each layer is written as soon as it is done and its dequantized weight lies in a mapped file,
so memory does not grow with the number of layers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kerf.calibration import activations, hessian
from kerf.calibration.candidate import StepContext, make_candidate
from kerf.calibration.layer import Calibrated
from kerf.config import Calibration
from kerf.config.methods import METHODS
from kerf.core.errors import refuse
from kerf.models import architecture, manifest, registry
from kerf.models.coverage import coverage
from kerf.quantize.check import imported_by
from kerf.quantize.compress import QuantizedLayer, compress, usable
from kerf.quantize.mixed_precision import assign, held_out_cosine, read, sensitivity

ON_GRID = 1e-5  # of the largest weight: a layer that changes less was on this grid before
ATTEMPTS = 6  # at an assignment of bits that meets its limit


def quantize(
    model: str, step: Any, calibration: Calibration, source: Path | str | None = None
) -> Path:
    """Directory of the candidate; source: the candidate that is quantized, None for the baseline. `check` came before.

    Made once: the same inputs give the same directory back. Raises InputError for weights whose scale does not fit
    scale_dtype, and for a checkpoint of another model.
    """
    context = StepContext("quantize", model, step, calibration, Path(source) if source else None)
    method, key = METHODS[step.method], {}
    if method.calibration != "sequential":
        activations.calibrate(
            model, calibration
        )  # an artifact of its own, whose time is not counted here
    if imported := imported_by(step):
        key = imported.fingerprint(step, calibration)
        imported.folder_of(model, step, calibration)  # the same
    return make_candidate(context, _make, key, method.modules())


def _make(context: StepContext, folder: Path) -> dict:
    step = context.step
    result = _mixed(context, folder) if step.bits == "mixed" else _write(context, folder)
    if imported := imported_by(step):
        checkpoint = imported.folder_of(context.model, step, context.calibration)
        result["elsewhere"] = imported.cost(checkpoint, step)
    return result


def _mixed(context: StepContext, folder: Path) -> dict:
    """Widths by sensitivity, and again with a corrected limit until the candidate itself meets the budget or the cosine.

    The first assignment takes the costs of layers as additive; a limit that was met at once is tried once more, tighter.
    """
    step, least = context.step, context.step.min_cosine
    if least and context.source:
        reached = held_out_cosine(context, context.source)
        if reached < least:
            accepted = f"at most {reached:.4f}, which is what the steps before left"
            raise refuse("min_cosine", least, accepted)
    table = read(sensitivity(context.model, step, context.calibration, context.source))
    limit, met = step.budget_bytes or 1 - least, None
    for attempt in range(ATTEMPTS):
        bits, predicted = assign(table, step, limit)
        result = _write(context, folder, bits) | {"assignment": bits, "predicted": predicted}
        if step.budget_bytes:
            excess = manifest.size(folder)["bytes_on_disk"] - step.budget_bytes
            if excess <= 0:
                return result
            limit -= 1.1 * excess
            continue
        cosine = held_out_cosine(context, folder)
        result["held_back"] = cosine
        if cosine >= least:
            if attempt:
                return result
            met = result
        limit *= (1 - least) / (1 - cosine) * (0.97 if attempt else 1)
    if met:
        return met | _write(context, folder, met["assignment"])
    raise RuntimeError(f"no assignment met {step.budget_bytes or least} in {ATTEMPTS} attempts")


def _write(context: StepContext, folder: Path, bits: dict[str, float] | None = None) -> dict:
    """Write the candidate, with `bits` by layer where widths are mixed; returns what its artifact keeps."""
    step, rows, sizes, bits_of = context.step, [], [], {}
    opened, net, reference = context.open_pair()
    stored_dtype = _round_unquantized(net, step)
    tied = getattr(net, "all_tied_weights_keys", None) or {}  # transformers ties them as it opens

    def tensors() -> Iterator[tuple[str, object]]:
        originals = architecture.linears(
            registry.reference_network(context.model, context.source, reference)
        )
        written = set()
        for layer in _layers(context, opened, net, reference, bits):
            name, quantized = layer.name, layer.quantized
            written.add(f"{name}.weight")
            bits_of[name] = quantized.bits
            if name in originals:
                rows.append(_row(layer, originals[name].weight.data))
                sizes.append((quantized.codes.numel(), quantized.stored_bits()))
            yield f"{name}.weight", quantized
        for name, value in net.state_dict().items():
            if name not in written and name not in tied:
                yield name, value.to(stored_dtype) if value.is_floating_point() else value

    manifest.write_candidate(folder, context.origin, tensors(), context.card(net))
    count = sum(weights for weights, _ in sizes)
    zeros = sum(row["sparsity"] * weights for row, (weights, _) in zip(rows, sizes, strict=True))
    linear_bits = sum(stored for _, stored in sizes) / count
    covered = coverage(opened, net, bits_of)
    figures = {"linear_bits": linear_bits, "sparsity": zeros / count, "coverage": covered}
    return {**figures, "layers": rows}


def _layers(
    context: StepContext,
    opened: Any,
    net: torch.nn.Module,
    reference: torch.nn.Module,
    bits: dict[str, float] | None,
) -> Iterator[QuantizedLayer]:
    """The layers of `net`, quantized in place by the step's method."""
    step = context.step
    batches, second, groups = context.batches(opened), {}, []
    if METHODS[step.method].calibration == "sequential":
        groups = activations.groups_of(net, batches[0])
    else:
        second = activations.second_moments(
            activations.calibrate(context.model, context.calibration)
        )
    if imported := imported_by(step):
        folder = imported.folder_of(context.model, step, context.calibration)
        for name, quantized, note in imported.adopted(net, step, folder):
            yield QuantizedLayer(name, quantized, note, second.get(name))
        return
    sparse = any("prune" in before for before in context.steps_before)
    yield from compress(Calibrated(net, reference, groups, batches), step, second, bits, sparse)


def _round_unquantized(net: torch.nn.Module, step: Any) -> torch.dtype:
    """Round what is not quantized to the dtype it is stored in, before anything is calibrated on it."""
    dtype = getattr(torch, step.unquantized_dtype)
    layers = (*architecture.linears(net).values(), *architecture.embeddings(net).values())
    quantized = {id(layer.weight) for layer in layers}
    for parameter in net.parameters():
        if id(parameter) not in quantized and dtype != torch.float32:
            parameter.data = parameter.data.to(dtype).float()
    return dtype


def _row(layer: QuantizedLayer, original: torch.Tensor) -> dict:
    """Bits of a layer, and the squared error of its output over its squared output; original: its weight in the reference."""
    quantized, second = layer.quantized, usable(layer.second, original)
    values = quantized.dequantize()
    error = None if second is None else hessian.output_error(original, values, second)
    largest = float(original.abs().max())
    moved = float(values.sub_(original).abs_().max())
    return {
        "name": layer.name,
        "bits": quantized.bits,
        "error": error,
        "note": layer.note,
        "sparsity": 0.0 if quantized.mask is None else 1 - float(quantized.mask.float().mean()),
        "reread": bool(largest > 0 and moved <= ON_GRID * largest),
    }
