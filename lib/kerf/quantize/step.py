"""The quantize stage: a model or candidate in, a candidate with packed weights out.

rtn looks at one weight at a time; gptq streams the calibration text through the model, and through the
float model beside it, and quantizes layers in the order they run, so that later layers see what earlier
ones became and make up for it. Word embeddings are rounded to nearest per row, first of all, since every
layer sees them. Positions, biases and LayerNorm stay float. Linear layers may come quantized from elsewhere instead
(`kerf.formats.imported`).

A layer is written as soon as it is done, and what the model goes on with lies in a mapped file: memory
does not grow with the number of layers.
"""

import time
from pathlib import Path

from kerf.calibration import activations, hessian
from kerf.config import Calibration
from kerf.config.methods import METHODS
from kerf.config.quantize import Quantize
from kerf.core.cache import artifact
from kerf.core.errors import refuse
from kerf.core.memory import peak_rss_bytes, reset_peak_rss
from kerf.models import architecture, families, manifest, registry
from kerf.quantize.check import imported_by

REREAD = 1e-5  # of the largest weight: a layer that moves less was on this grid before


def quantize(
    model: str,
    step: Quantize,
    calibration: Calibration,
    source: str | Path = "",
) -> Path:
    """Directory of the candidate that `step` makes of `source` (a candidate; empty: the baseline); `check` came before.

    Made once: the same inputs give the same directory back. Raises InputError for weights whose scale does not fit
    scale_dtype, and for a checkpoint of another model.
    """
    # Sequential methods look at the text by themselves, as the layers before each one have become.
    sequential = METHODS[step.method].calibration == "sequential"
    moments = None if sequential else activations.calibrate(model, calibration)
    origin = registry.weights_digest(Path(source)) if source else None
    key = {
        "step": step.model_dump(),
        "calibration": activations.key_of(model, calibration),
        "source": origin,
    }
    imported = imported_by(step)
    if imported:
        key |= imported.fingerprint(step, calibration)
        imported.folder_of(model, step, calibration)  # what it takes is counted apart
    return artifact(
        "candidate",
        key,
        lambda folder: _make(folder, model, step, calibration, source, moments),
        also=METHODS[step.method].modules(),
    )


def _make(folder, model, step, calibration, source, moments) -> dict:
    import sentence_transformers  # noqa: F401  imports are not what is measured

    reset_peak_rss()
    clock = time.perf_counter()
    inputs = (model, step, calibration, source, moments)
    found = _write(folder, *inputs, {}) if step.bits != "mixed" else _mixed(folder, *inputs)
    seconds, peak = time.perf_counter() - clock, peak_rss_bytes()
    if imported := imported_by(step):
        spent, held = imported.cost(imported.folder_of(model, step, calibration), step)
        seconds, peak = seconds + spent, max(peak, held)
    return {"model": model, "compress_seconds": seconds, "compress_peak_rss_bytes": peak, **found}


def _mixed(folder, model, step, calibration, source, moments) -> dict:
    """Widths by sensitivity, and again with a corrected limit while the sums were too optimistic."""
    from kerf.quantize.mixed_precision import assign, held_fidelity, read, sensitivity

    if (
        step.min_cosine
        and source
        and (left := held_fidelity(model, Path(source), calibration, source)) < step.min_cosine
    ):
        raise refuse(
            "min_cosine",
            step.min_cosine,
            f"at most {left:.4f}, which is what the steps before left",
        )
    table = read(sensitivity(model, step, calibration, source))
    limit, met = step.budget_bytes or 1 - step.min_cosine, None
    for attempt in range(6):
        assignment, predicted = assign(table, step, limit)
        found = _write(folder, model, step, calibration, source, moments, assignment)
        found |= {"assignment": assignment, "predicted": predicted}
        if step.budget_bytes:
            if found["bytes_on_disk"] <= step.budget_bytes:
                return found
            limit -= 1.1 * (found["bytes_on_disk"] - step.budget_bytes)
            continue
        found["held_back"] = held_fidelity(model, folder, calibration, source)
        if found["held_back"] >= step.min_cosine:
            if attempt:
                return found
            met = found  # the sums were not too optimistic; were they too careful?
        limit *= (1 - step.min_cosine) / (1 - found["held_back"]) * (0.97 if attempt else 1)
    if met:
        return met | _write(folder, model, step, calibration, source, moments, met["assignment"])
    raise RuntimeError(
        f"no assignment met {step.budget_bytes or step.min_cosine} in {attempt + 1} attempts"
    )


def _write(folder, model, step, calibration, source, moments, assignment) -> dict:
    from kerf.quantize.compress import compress

    opened = registry.open_source(model, source)
    net, reference = (
        registry.network(opened),
        registry.network(registry.open_source(model, source)),
    )
    batches = families.of_opened(opened).batches(opened, calibration)
    statistics = activations.second_moments(moments) if moments else {}
    groups = activations.groups_of(net, batches[0]) if moments is None else []
    layers, sizes, kept = [], [], _round_floats(net, step)
    before = manifest.verify(Path(source))["steps"] if source else []
    sparse = any("prune" in each for each in before)
    tied = (
        getattr(net, "all_tied_weights_keys", None) or {}
    )  # transformers makes them one tensor as it opens

    def tensors():
        floats, written = (
            architecture.linears(registry.reference_network(model, source, reference)),
            set(),
        )
        if imported := imported_by(step):
            adopted = imported.adopted(net, step, imported.folder_of(model, step, calibration))
            found = ((*each, statistics.get(each[0])) for each in adopted)
        else:
            found = compress(net, reference, step, groups, statistics, batches, assignment, sparse)
        for name, quantized, note, second in found:
            written.add(f"{name}.weight")
            if name in floats:
                layers.append(_layer(name, quantized, floats[name].weight.data, second, note))
                sizes.append((quantized.stored_bits(), quantized.codes.numel()))
            yield f"{name}.weight", quantized
        for name, value in net.state_dict().items():
            if name not in written and name not in tied:
                yield name, value.to(kept) if value.is_floating_point() else value

    steps = [*before, {"quantize": step.model_dump()}]
    card = {
        "model": model,
        "kind": families.name_of(registry.resolve(model)),
        "class": type(net).__name__,
        "steps": steps,
    }
    manifest.write_candidate(
        folder, Path(source) if source else registry.resolve(model), tensors(), card
    )
    linear_bits = sum(bits for bits, _ in sizes) / sum(count for _, count in sizes)
    counts = [count for _, count in sizes]
    gone = sum(row["sparsity"] * count for row, count in zip(layers, counts, strict=True)) / sum(
        counts
    )
    return {
        "steps": steps,
        "linear_bits": linear_bits,
        "sparsity": gone,
        "layers": layers,
        **manifest.size(folder),
    }


def _round_floats(net, step):
    """Round what is not quantized to the dtype it is stored in, before anything is calibrated on it."""
    import torch

    kept = getattr(torch, step.unquantized_dtype)
    cut = {
        id(layer.weight)
        for layer in (*architecture.linears(net).values(), *architecture.embeddings(net).values())
    }
    for parameter in net.parameters():
        if id(parameter) not in cut and kept != torch.float32:
            parameter.data = parameter.data.to(kept).float()
    return kept


def _layer(name, quantized, weight, second, note) -> dict:
    """Bits of a layer, and its squared output error over its squared output; second: moments of its input, or None."""
    gone = 0.0 if quantized.kept is None else 1 - float(quantized.kept.float().mean())
    row = {"name": name, "bits": quantized.bits, "error": None, "note": note, "sparsity": gone}
    values = quantized.dequantize()
    if (
        second is not None and len(second) == weight.shape[1]
    ):  # a source may have fewer columns than the baseline
        row["error"] = hessian.output_error(weight, values, second)
    largest = float(weight.abs().max())
    row["reread"] = bool(
        largest > 0 and float(values.sub_(weight).abs_().max()) <= REREAD * largest
    )
    return row
