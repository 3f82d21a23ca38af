"""The prune stage: a model or candidate in, a candidate with part of its weights 0 out.

magnitude looks at weights alone. wanda and sparsegpt stream the calibration text through the model, and
through the model as it was beside it, and prune layers in the order they run, so that later layers see
what earlier ones became. Word embeddings, positions, biases and LayerNorm stay as they are. With neurons
and heads whole units go and matrices get smaller, with depth whole blocks.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kerf.calibration import activations, hessian
from kerf.config import Calibration
from kerf.config.methods import PRUNING_METHODS
from kerf.config.prune import STRUCTURES, UNITS, Prune
from kerf.core.cache import artifact, meta
from kerf.core.memory import peak_rss_bytes, reset_peak_rss
from kerf.models import architecture, families, manifest, registry
from kerf.prune import allocation
from kerf.prune.check import check_structure
from kerf.tensors import parquet

# What a structure that goes changes in the configuration.
CONFIG = {
    "neurons": ["intermediate_size"],
    "heads": ["num_attention_heads", "num_key_value_heads", "head_dim"],
    "depth": ["num_hidden_layers", "layer_types"],
}


def prune(model: str, step: Prune, calibration: Calibration, source: str | Path = "") -> Path:
    """Directory of the candidate that `step` makes of `source` (a candidate; empty: the baseline).

    Of a quantized source the grid stays, and what is pruned is 0 beside it. Raises InputError for a pattern
    that does not divide a layer's columns. `check` came before.
    """
    moments = activations.calibrate(model, calibration)
    origin = registry.weights_digest(Path(source)) if source else None
    key = {"step": step.model_dump(), "calibration": meta(moments)["key"], "source": origin}
    return artifact(
        "candidate",
        key,
        lambda folder: _make(folder, model, step, calibration, source, moments),
        also=PRUNING_METHODS[step.method].modules(),
    )


def _make(folder, model, step, calibration, source, moments) -> dict:
    import sentence_transformers  # noqa: F401  imports are not what is measured

    reset_peak_rss()
    clock = time.perf_counter()
    opened = registry.open_source(model, source)
    net, reference = (
        registry.network(opened),
        registry.network(registry.open_source(model, source)),
    )
    groups, _ = activations.read(moments)
    second = activations.second_moments(moments)
    batches = families.of_opened(opened).batches(opened, calibration)
    places: dict[str, str] = {}
    shares = (
        allocation.allocated(model, step, calibration, source)
        if step.allocation == "sensitivity"
        else None
    )
    floats = registry.reference_network(model, source, reference)
    layers = [
        _row(name, floats, weight, second, note, gone)
        for name, weight, note, gone in _cut(net, reference, step, groups, batches, places, shares)
    ]
    tensors = _tensors(net, source, places)
    config = {
        key: getattr(net.config, key)
        for key in CONFIG.get(step.method, ())
        if getattr(net.config, key, None) is not None
    }
    before = manifest.verify(Path(source))["steps"] if source else []
    steps = [*before, {"prune": step.model_dump()}]
    card = {
        "model": model,
        "kind": families.name_of(registry.resolve(model)),
        "class": type(net).__name__,
        "steps": steps,
    }
    manifest.write_candidate(
        folder, Path(source) if source else registry.resolve(model), tensors, card, config
    )
    count = sum(layer.weight.numel() for layer in architecture.linears(reference).values())
    left = sum(int((layer.weight != 0).sum()) for layer in architecture.linears(net).values())
    bits = sum(parquet.stored_bits(tensors[f"{name}.weight"]) for name in architecture.linears(net))
    return {
        "model": model,
        "steps": steps,
        "compress_seconds": time.perf_counter() - clock,
        "compress_peak_rss_bytes": peak_rss_bytes(),
        "linear_bits": bits / count,
        "sparsity": 1 - left / count,
        "layers": layers,
        **manifest.size(folder),
    }


def _cut(
    net, reference, step, groups, batches, places, shares
) -> Iterator[tuple[str, object, str, float]]:
    """Prune `net` in place, and yield each layer: name, weight (None: nothing to compare), a note, share that went.
    places: filled with the new names of blocks by their old ones, where blocks go; shares: see `pruned`."""
    if step.method in STRUCTURES:
        check_structure(net, step)  # a source may have fewer units than the baseline
    if step.method in UNITS:
        from kerf.prune import structured

        found = structured.units(net, step.method)
        for name, gone, weight in structured.remove(net, reference, step, groups, batches):
            yield name, weight, "", gone
            yield from ((each, None, "", gone) for each in found[name])
        return
    if step.method == "depth":
        from kerf.prune import depth

        influence, moves = depth.drop(net, batches, step.sparsity)
        places.update(moves)
        for name, layer in architecture.linears(reference).items():
            block = next((block for block in influence if name.startswith(f"{block}.")), None)
            if block is not None:
                note = f"block influence {influence[block]:.4f}: " + (
                    "stays" if block in moves else "dropped"
                )
                yield (
                    name,
                    layer.weight.data if block in moves else None,
                    note,
                    float(block not in moves),
                )
        return
    for name, weight, note in prune_layers(net, reference, step, groups, batches, shares):
        yield name, weight, note, float((weight == 0).float().mean())


def _row(name, floats, weight, second, note, sparsity) -> dict:
    whole, error = floats.get_submodule(name).weight.data, None
    if weight is not None and name in second and len(second[name]) == whole.shape[1]:
        error = hessian.output_error(whole, weight, second[name])
    return {"name": name, "bits": 32, "error": error, "note": note, "sparsity": sparsity}


def _tensors(net, source, places) -> dict:
    """What is stored: the network's tensors, those of a quantized source still on their grid; places: see `_cut`."""
    from kerf.prune.depth import moved
    from kerf.tensors.quantized import Quantized

    tied = getattr(net, "all_tied_weights_keys", None) or {}
    tensors = {name: value for name, value in net.state_dict().items() if name not in tied}
    linear = {f"{name}.weight" for name in architecture.linears(net)}
    for name, value in parquet.read_tensors(Path(source) / parquet.WEIGHTS) if source else ():
        name = moved(name, places) if places else name
        if isinstance(value, Quantized) and name is not None:
            tensors[name] = replace(value, kept=tensors[name] != 0) if name in linear else value
    return tensors


def prune_layers(
    net, reference, step: Prune, groups, batches, shares: dict[str, float] | None = None
) -> Iterator[tuple[str, object, str]]:
    """Prune the layers of `net` in place, and yield each: name, weight, a note on what was special.

    shares: sparsity of each layer, where they differ.
    """
    from kerf.calibration.sequential import layer_inputs
    from kerf.prune.layers import prune_by_weights, prune_group

    layers = architecture.linears(net)
    if PRUNING_METHODS[step.method].calibration == "none":
        yield from prune_by_weights(layers, step, shares)
        return
    networks = (net, reference) if getattr(step, "asymmetric_calibration", False) else (net,)
    seen = set()
    for stops in zip(
        *(layer_inputs(each, groups, batches, rounded=True) for each in networks), strict=True
    ):
        names = stops[0][0]
        seen.update(names)
        yield from prune_group(
            {name: layers[name] for name in names}, [inputs for _, inputs in stops], step, shares
        )
    rest = {name: layer for name, layer in layers.items() if name not in seen}
    for name, weight, _ in prune_by_weights(rest, step, shares):
        yield name, weight, "no calibration text reached it: pruned by magnitude"
