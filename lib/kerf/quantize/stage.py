"""The quantize stage: a model or candidate in, a candidate with packed weights out.

rtn looks at one weight at a time; gptq streams the calibration text through the model, and through the
float model beside it, and quantizes layers in the order they run, so that later layers see what earlier
ones became and make up for it. Word embeddings are rounded to nearest per row, first of all, since every
layer sees them. Positions, biases and LayerNorm stay float.

A layer is written as soon as it is done, and what the model goes on with lies in a mapped file: memory
does not grow with the number of layers.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from kerf import calibrate, models, store, texts
from kerf.artifacts import artifact, meta
from kerf.errors import refuse
from kerf.memory import peak_rss_bytes, reset_peak_rss
from kerf.parking import park
from kerf.steps import Calibration, Quantize, check_divides


def quantize(
    model: str, step: Quantize, calibration: Calibration, source: str | Path = "", device: str = "cpu"
) -> Path:
    """Directory of the candidate that `step` makes of `source` (a candidate; empty: the baseline).

    Made once: the same inputs give the same directory back. Raises Refused for a group size that does
    not divide a layer, and for weights whose scale does not fit scale_dtype.
    """
    moments = calibrate.calibrate(model, calibration, device)
    if step.group_size:
        check_divides(step.group_size, models.describe(model)["linears"], "group_size")
    origin = models.weights_digest(Path(source)) if source else None
    key = {"step": step.model_dump(), "calibration": meta(moments)["key"], "source": origin}
    return artifact("candidate", key, lambda folder: _make(folder, model, step, calibration, source, moments, device))


def _make(folder, model, step, calibration, source, moments, device) -> dict:
    import sentence_transformers  # noqa: F401  imports are not what quantizing costs

    reset_peak_rss()
    clock = time.perf_counter()
    inputs = (model, step, calibration, source, moments, device)
    found = _write(folder, *inputs, {}) if step.bits != "mixed" else _mixed(folder, *inputs)
    seconds = time.perf_counter() - clock
    return {"model": model, "compress_seconds": seconds, "compress_peak_rss_bytes": peak_rss_bytes(), **found}


def _mixed(folder, model, step, calibration, source, moments, device) -> dict:
    """Widths by sensitivity, and again with a corrected limit while the sums were too optimistic."""
    from kerf.quantize.sensitivity import assign, held_fidelity, read, sensitivity

    table = read(sensitivity(model, step, calibration, device))
    limit = step.budget_bytes or 1 - step.floor
    for attempt in range(6):
        assignment, predicted = assign(table, step, limit)
        found = _write(folder, model, step, calibration, source, moments, device, assignment)
        found |= {"assignment": assignment, "predicted": predicted}
        if step.budget_bytes:
            if found["bytes_on_disk"] <= step.budget_bytes:
                return found
            limit -= 1.1 * (found["bytes_on_disk"] - step.budget_bytes)
        else:
            found["held_back"] = held_fidelity(model, folder, calibration)
            if found["held_back"] >= step.floor and attempt:
                return found
            limit *= (1 - step.floor) / (1 - found["held_back"]) * (0.97 if attempt else 1)
    raise RuntimeError(f"no assignment met {step.budget_bytes or step.floor} in {attempt + 1} attempts")


def _write(folder, model, step, calibration, source, moments, device, assignment) -> dict:
    opened = models.open_source(model, source, device)
    net, reference = models.network(opened), models.network(models.open_source(model, source, device))
    groups, statistics = calibrate.read(moments)
    sample = texts.calibration_sentences(calibration.texts, calibration.samples, calibration.seed)
    batches = models.batches(opened, sample, calibrate.BATCH_SIZE, calibration.max_length)
    layers, sizes, kept = [], [], _round_floats(net, step)

    def tensors():
        floats, written = models.linears(reference), set()
        for name, quantized, note in compress(net, reference, step, groups, statistics, batches, assignment):
            written.add(f"{name}.weight")
            if name in floats:
                layers.append(_layer(name, quantized, floats[name].weight.data, groups, statistics, note))
                sizes.append((quantized.stored_bits(), quantized.codes.numel()))
            yield f"{name}.weight", quantized
        for name, value in net.state_dict().items():
            if name not in written:
                yield name, value.to(kept) if value.is_floating_point() else value

    before = store.verify(Path(source))["steps"] if source else []
    steps = [*before, {"quantize": step.model_dump()}]
    card = {"model": model, "kind": "encoder", "class": type(net).__name__, "steps": steps}
    store.write_candidate(folder, Path(source) if source else models.resolve(model), tensors(), card)
    linear_bits = sum(bits for bits, _ in sizes) / sum(count for _, count in sizes)
    return {"steps": steps, "linear_bits": linear_bits, "layers": layers, **store.size(folder)}


def _round_floats(net, step):
    """Round what is not quantized to the dtype it is stored in, before anything is calibrated on it."""
    import torch

    kept = getattr(torch, step.floats)
    cut = {id(layer.weight) for layer in (*models.linears(net).values(), *models.embeddings(net).values())}
    for parameter in net.parameters():
        if id(parameter) not in cut and kept != torch.float32:
            parameter.data = parameter.data.to(kept).float()
    return kept


def compress(
    net, reference, step: Quantize, groups, statistics, batches, assignment: dict[str, float] | None = None
) -> Iterator[tuple[str, object, str]]:
    """Quantize the layers of `net` in place, and yield each: name, Quantized, a note on what was special.

    reference: the same network, left as it is; groups, statistics: what `calibrate.read` gives;
    assignment: layer -> bits, where they are mixed. Layers that are one tensor (tied) are quantized once.
    """
    done: dict[int, object] = {}
    shared = _tied(net)
    for name, quantized, note in _each(net, reference, step, groups, statistics, batches, done, assignment or {}):
        weight = net.get_submodule(name).weight
        done[id(weight)] = quantized if id(weight) in shared else None  # kept only where it is needed again
        weight.data = park(quantized.dequantize())
        yield name, quantized, note


def _each(net, reference, step, groups, statistics, batches, done, assignment):
    from kerf.lockstep import in_lockstep

    def at(name):
        return step.model_copy(update={"bits": assignment[name], "embeddings": "same"}) if assignment else step

    layers, seen = models.linears(net), set()
    for name, layer in models.embeddings(net).items():
        if at(name).embedding_bits() < 32:
            yield name, _embedding(name, layer, at(name)), ""
    if step.method == "gptq":
        networks = (net, reference) if step.asymmetric_calibration else (net,)
        for stops in zip(*(in_lockstep(each, groups, batches) for each in networks), strict=True):
            names = [name for name in stops[0][0] if id(layers[name].weight) not in done]
            seen.update(names)
            if names:
                yield from _gptq_group(layers, names, [inputs for _, inputs in stops], at)
    heads = {name: group[0] for group in groups for name in group}
    for name in layers.keys() - seen if step.method == "gptq" else layers:
        if id(layers[name].weight) in done:
            yield name, done[id(layers[name].weight)], "the same tensor as another layer's"
        else:
            second = statistics.get(f"second/{heads.get(name)}")
            note = "no calibration text reached it: rounded to nearest" if step.method == "gptq" else ""
            yield name, _rtn_layer(name, layers[name], at(name), None if second is None else second.diagonal()), note


def _tied(net) -> set[int]:
    """Ids of weights that several layers have."""
    every = [id(layer.weight) for layer in (*models.linears(net).values(), *models.embeddings(net).values())]
    return {weight for weight in every if every.count(weight) > 1}


def _embedding(name, layer, step):
    """A grid a row, whatever the linear layers have; no activations weigh the columns of a look-up."""
    from kerf.quantize.rtn import rtn

    columns = layer.weight.shape[1]
    options = _grid_options(step, columns) | {"bits": step.embedding_bits(), "per_tensor": False, "group_size": columns}
    return _named(name, rtn, layer.weight.data, **options)


def _grid_options(step: Quantize, columns: int, importance=None) -> dict:
    """Keyword arguments of `find_grid` and `rtn` for a linear layer of so many columns."""
    import torch

    return {
        "bits": step.bits,
        "group_size": step.group_size or columns,
        "symmetric": step.symmetric,
        "clip": step.clip != "none",
        "importance": importance if step.clip == "hessian" else None,
        "scale_dtype": getattr(torch, step.scale_dtype),
        "per_tensor": step.granularity == "tensor",
    }


def _rtn_layer(name, layer, step, importance):
    from kerf.quantize.rtn import rtn

    weight = layer.weight.data
    return _named(name, rtn, weight, **_grid_options(step, weight.shape[1], importance))


def _gptq_group(layers, names, inputs, at) -> Iterator[tuple[str, object, str]]:
    """Layers that share an input: one Hessian, one factor. inputs: of the net, and of the float one beside it.

    at(name): the step's parameters for a layer.
    """
    import torch

    from kerf.quantize.gptq import corrected

    H, drift = _moments(*inputs)
    weights = {name: layers[name].weight.data for name in names}
    if drift is not None:
        stacked = corrected(torch.cat(list(weights.values())), H, drift)
        weights = dict(zip(names, stacked.split([len(weight) for weight in weights.values()]), strict=True))
    order, factor = _factor(H, at(names[0]))
    for name, weight in weights.items():
        result, note = _gptq_layer(name, weight, H, order, factor, at(name))
        yield name, result or _rtn_layer(name, layers[name], at(name), H.diagonal()), note


def _factor(H, step):
    """The order of the columns, and the inverse factor in that order with the damping it took."""
    import torch

    from kerf.quantize.gptq import act_order, inverse_factor

    order = act_order(H) if step.act_order else torch.arange(len(H))
    return order, inverse_factor(H[order][:, order])


def _gptq_layer(name, weight, H, order, factor, step):
    from kerf.quantize.gptq import DAMPING, gptq
    from kerf.quantize.grid import find_grid

    grid = _named(name, find_grid, weight, **_grid_options(step, len(H), H.diagonal()))
    result, damping = gptq(weight, H, *grid, step.bits, order, step.symmetric, factor, step.sweeps)
    if result is None:
        return None, "second moments could not be factorized: rounded to nearest"
    return result, f"damping raised to {damping:g}" if damping > DAMPING else ""


def one_layer(name, layer, step: Quantize, second=None):
    """Quantized of one layer by itself; second: moments of its input in the float model, None for embeddings."""
    import torch

    if isinstance(layer, torch.nn.Embedding):
        return _embedding(name, layer, step)
    if step.method == "gptq" and second is not None:
        result, _ = _gptq_layer(name, layer.weight.data, second, *_factor(second, step), step)
        if result:
            return result
    return _rtn_layer(name, layer, step, None if second is None else second.diagonal())


def _moments(inputs, originals=None):
    """H = X^T X over all batches, and the drift (F - X)^T X where the float model's inputs F come along."""
    import torch

    H = drift = None
    for X in inputs:
        if H is None:
            H = torch.zeros(X.shape[1], X.shape[1])
            drift = torch.zeros_like(H) if originals is not None else None
        calibrate.add_second_moments(H, X)
        if originals is not None:
            drift.addmm_((next(originals) - X).T, X)
    calibrate.complete(H)
    return H, drift


def _named(name, function, weight, **options):
    """Call `function`; a scale that does not fit is refused with the layer's name."""
    try:
        return function(weight, **options)
    except OverflowError as error:
        raise refuse("scale_dtype", name, f"float32 for this layer: {error}") from None


def _layer(name, quantized, weight, groups, statistics, note) -> dict:
    """Bits of a layer, and its squared output error over its squared output on the calibration text."""
    head = next((group[0] for group in groups if name in group), None)
    row = {"name": name, "bits": quantized.bits, "error": None, "note": note}
    if head:
        H, error = statistics[f"second/{head}"], quantized.dequantize() - weight
        output = float(((weight @ H) * weight).sum())
        row["error"] = float(((error @ H) * error).sum()) / output if output > 0 else None
    return row
