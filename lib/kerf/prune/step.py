"""The prune step: a model or candidate in, a candidate with part of its weights zero, or removed, out.

magnitude looks at weights alone. wanda and sparsegpt stream the calibration text through the model, and through an unchanged
copy beside it, and prune layers in the order they run, so that later layers compensate for earlier ones. Word embeddings,
positions, biases and LayerNorm stay as they are. neurons, heads and depth remove whole units, so matrices or the network shrink.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kerf.calibration import activations, hessian
from kerf.calibration.candidate import StepContext, make_candidate
from kerf.calibration.layer import Calibrated
from kerf.config import Calibration
from kerf.config.methods import PRUNING_METHODS
from kerf.config.prune import STRUCTURES
from kerf.core.registry import resolved
from kerf.models import architecture, manifest, registry
from kerf.models.coverage import coverage
from kerf.prune import allocation
from kerf.prune.check import check_structure
from kerf.prune.layers import PrunedLayer, prune_layers
from kerf.tensors import parquet
from kerf.tensors.quantized import Quantized

UNITS_ONLY = "not among the units that the method removes"
DERIVED = (
    "head_dim",
)  # transformers computes it from the number of heads where config.json has none


def prune(
    model: str, step: Any, calibration: Calibration, source: Path | str | None = None
) -> Path:
    """Directory of the candidate; source: the candidate that is pruned, None for the baseline. `check` came before.

    A quantized source keeps its scales, zero points and codes, and a mask is stored beside them. Raises InputError for a
    pattern that does not divide a layer's columns.
    """
    context = StepContext("prune", model, step, calibration, Path(source) if source else None)
    activations.calibrate(
        model, calibration
    )  # an artifact of its own, whose time is not counted here
    return make_candidate(context, _make, modules=PRUNING_METHODS[step.method].modules())


def _make(context: StepContext, folder: Path) -> dict:
    step, method = context.step, PRUNING_METHODS[context.step.method]
    moments = activations.calibrate(context.model, context.calibration)
    second = activations.second_moments(moments)
    opened, net, reference = context.open_pair()
    batches = context.batches(opened)
    text = Calibrated(net, reference, activations.groups_of(net, batches[0]), batches)
    originals = architecture.linears(
        registry.reference_network(context.model, context.source, reference)
    )
    names = {id(module): name for name, module in net.named_modules()}
    if step.method in STRUCTURES:
        check_structure(net, step)  # a source may have fewer units than the baseline
    if method.network:
        layers = resolved(method.network)(text, step)
    else:
        sensitive = getattr(step, "allocation", "uniform") == "sensitivity"
        layers = prune_layers(text, step, allocation.allocated(context) if sensitive else None)
    rows = [
        _row(layer, originals[layer.name].weight.data, second.get(layer.name)) for layer in layers
    ]
    renamed = {
        names[id(module)]: name for name, module in net.named_modules() if id(module) in names
    }
    tensors = _tensors(net, context.source, renamed)
    manifest.write_candidate(
        folder, context.origin, tensors, context.card(net), _changed_config(net, reference)
    )
    count = sum(layer.weight.numel() for layer in architecture.linears(reference).values())
    left = sum(int((layer.weight != 0).sum()) for layer in architecture.linears(net).values())
    bits = sum(parquet.stored_bits(tensors[f"{name}.weight"]) for name in architecture.linears(net))
    changed = {row["name"] for row in rows}
    bits_of = dict.fromkeys(changed, 32) | {
        name.removesuffix(".weight"): value.bits
        for name, value in tensors.items()
        if isinstance(value, Quantized)
    }
    others = architecture.linears(net).keys() - changed if method.network else ()
    covered = coverage(opened, net, bits_of, dict.fromkeys(others, UNITS_ONLY))
    figures = {"linear_bits": bits / count, "sparsity": 1 - left / count, "coverage": covered}
    return {**figures, "layers": rows}


def _row(layer: PrunedLayer, original: Tensor, second: Tensor | None) -> dict:
    """A layer's sparsity, and the squared error of its output over its squared output; None where shapes differ."""
    error = None
    if layer.weight is not None and second is not None and len(second) == original.shape[1]:
        error = hessian.output_error(original, layer.weight, second.to(original.device))
    return {
        "name": layer.name,
        "bits": 32,
        "error": error,
        "note": layer.note,
        "sparsity": layer.sparsity,
    }


def _changed_config(net: Any, reference: Any) -> dict:
    """Keys of the network's configuration that removing units changed, and those that would be derived from them anew."""
    before, after = reference.config.to_dict(), net.config.to_dict()
    changed = {key for key, value in after.items() if value != before.get(key)}
    derived = {key for key in DERIVED if changed and after.get(key) is not None}
    return {key: after[key] for key in changed | derived}


def _tensors(net: torch.nn.Module, source: Path | None, renamed: dict[str, str]) -> dict:
    """Tensors to store by name, those of a quantized source still on their grid; renamed: new names of modules by old ones."""
    tied = getattr(net, "all_tied_weights_keys", None) or {}
    tensors = {name: value for name, value in net.state_dict().items() if name not in tied}
    linears = {f"{name}.weight" for name in architecture.linears(net)}
    for old, value in parquet.read_tensors(source / parquet.WEIGHTS) if source else ():
        module, _, parameter = old.rpartition(".")
        name = f"{renamed.get(module)}.{parameter}".lstrip(".")
        if isinstance(value, Quantized) and name in tensors:
            mask = tensors[name] != 0
            tensors[name] = replace(value, mask=mask.cpu()) if name in linears else value
    return tensors
