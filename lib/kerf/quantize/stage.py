"""The quantize stage: a model or candidate in, a candidate with packed weights out.

rtn looks at one weight at a time; gptq streams the calibration text through the model and quantizes
layers in the order they run, so that later layers see what earlier ones became. Word embeddings are
rounded to nearest per row, first of all, since every layer sees them. Positions, biases and LayerNorm
stay float.
"""

import time
from pathlib import Path

from kerf import calibrate, models, store, texts
from kerf.artifacts import artifact, meta
from kerf.errors import refuse
from kerf.memory import peak_rss_bytes, reset_peak_rss
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
    opened = models.open_source(model, source, device)
    net = models.network(opened)
    groups, statistics = calibrate.read(moments)
    sample = texts.calibration_sentences(calibration.texts, calibration.samples, calibration.seed)
    batches = models.batches(opened, sample, calibrate.BATCH_SIZE, calibration.max_length)
    floats = {name: layer.weight.detach().clone() for name, layer in models.linears(net).items()}
    done, notes = compress(net, step, groups, statistics, batches)
    tensors = {name: done.get(name.removesuffix(".weight"), value) for name, value in net.state_dict().items()}
    before = store.verify(Path(source))["steps"] if source else []
    steps = [*before, {"quantize": step.model_dump()}]
    card = {"model": model, "kind": "encoder", "class": type(net).__name__, "steps": steps}
    store.write_candidate(folder, Path(source) if source else models.resolve(model), tensors, card)
    layers = [_layer(name, done[name], floats[name], groups, statistics, notes) for name in floats]
    return {
        "model": model,
        "steps": steps,
        "compress_seconds": time.perf_counter() - clock,
        "compress_peak_rss_bytes": peak_rss_bytes(),
        "linear_bits": sum(done[n].stored_bits() for n in floats) / sum(w.numel() for w in floats.values()),
        "layers": layers,
        **store.size(folder),
    }


def compress(net, step: Quantize, groups: list[list[str]], statistics: dict, batches: list[dict]):
    """Quantize the layers of `net` in place. Returns name -> Quantized, and name -> a note on what was special."""
    from kerf.lockstep import in_lockstep
    from kerf.quantize.rtn import rtn

    done, notes = {}, {}
    for name, layer in models.embeddings(net).items():
        if step.embedding_bits() < 32:
            # A grid a row, whatever the linear layers have; no activations weigh the columns of a look-up.
            rowwise = {"bits": step.embedding_bits(), "per_tensor": False, "group_size": layer.weight.shape[1]}
            options = _grid_options(step, layer.weight.shape[1]) | rowwise
            done[name] = _named(name, rtn, layer.weight.data, **options)
            layer.weight.data.copy_(done[name].dequantize())
    layers = models.linears(net)
    if step.method == "gptq":
        for names, inputs in in_lockstep(net, groups, batches):
            _gptq_group(layers, names, inputs, step, done, notes)
    heads = {name: group[0] for group in groups for name in group}
    for name, layer in layers.items():
        if name not in done:
            second = statistics.get(f"second/{heads.get(name)}")
            done[name] = _rtn_layer(name, layer, step, None if second is None else second.diagonal())
            if step.method == "gptq":
                notes.setdefault(name, "no calibration text reached it: rounded to nearest")
            layer.weight.data.copy_(done[name].dequantize())
    return done, notes


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


def _gptq_group(layers, names, inputs, step, done, notes) -> None:
    """Quantize layers that share an input: rows stacked, one Hessian, one factor."""
    import torch

    from kerf.quantize.gptq import DAMPING, gptq
    from kerf.quantize.grid import Quantized, find_grid

    H = torch.zeros(inputs[0].shape[1], inputs[0].shape[1])
    for piece in inputs:
        H.addmm_(piece.T, piece)
    weights = [layers[name].weight.data for name in names]
    options = _grid_options(step, len(H), H.diagonal())
    grids = [_named(n, find_grid, w, **options) for n, w in zip(names, weights, strict=True)]
    rows = [len(weight) for weight in weights]
    scale, zero_point = (
        torch.cat([part.expand(count, -1) for part, count in zip(parts, rows, strict=True)])
        for parts in zip(*grids, strict=True)
    )
    result, damping = gptq(torch.cat(weights), H, scale, zero_point, step.bits, symmetric=step.symmetric)
    for name, grid, codes in zip(names, grids, result.codes.split(rows) if result else [None] * len(rows), strict=True):
        if result:
            done[name] = Quantized(codes, *grid, step.bits, result.group_size, step.symmetric)
            if damping > DAMPING:
                notes[name] = f"damping raised to {damping:g}"
        else:
            done[name] = _rtn_layer(name, layers[name], step, H.diagonal())
            notes[name] = "second moments could not be factorized: rounded to nearest"
        layers[name].weight.data.copy_(done[name].dequantize())


def _named(name, function, weight, **options):
    """Call `function`; a scale that does not fit is refused with the layer's name."""
    try:
        return function(weight, **options)
    except OverflowError as error:
        raise refuse("scale_dtype", name, f"float32 for this layer: {error}") from None


def _layer(name, quantized, weight, groups, statistics, notes) -> dict:
    """Bits of a layer, and its squared output error over its squared output on the calibration text."""
    head = next((group[0] for group in groups if name in group), None)
    row = {"name": name, "bits": quantized.bits, "error": None, "note": notes.get(name, "")}
    if head:
        H, error = statistics[f"second/{head}"], quantized.dequantize() - weight
        output = float(((weight @ H) * weight).sum())
        row["error"] = float(((error @ H) * error).sum()) / output if output > 0 else None
    return row
