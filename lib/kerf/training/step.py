"""The reconstruct step: a quantized or pruned candidate in, the same candidate with its remaining parameters trained out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kerf.calibration.candidate import StepContext, make_candidate
from kerf.config import Calibration, Reconstruct
from kerf.core.cache import meta
from kerf.core.errors import refuse
from kerf.models import architecture, families, manifest, registry
from kerf.tensors import parquet
from kerf.tensors.quantized import Quantized
from kerf.training import blockwise, training_data


def reconstruct(
    model: str, step: Reconstruct, calibration: Calibration, source: Path | str | None = None
) -> Path:
    """Directory of the candidate that training makes of the quantized or pruned candidate `source`.

    Never worse than `source` on held-out text: where training gained nothing, the weights of `source` are kept. Raises
    InputError without a source, and when the calibration text leaves nothing to hold out.
    """
    if not source:
        accepted = "a step after quantize or prune: there is nothing to reconstruct yet"
        raise refuse("reconstruct", "first", accepted)
    registry.check_family(model, "reconstruct", "encoder", "causal")
    families.of(registry.resolve(model)).check_held_back(registry.resolve(model), calibration)
    context = StepContext("reconstruct", model, step, calibration, Path(source))
    return make_candidate(context, _make)


def _make(context: StepContext, folder: Path) -> dict:
    source, step = context.origin, context.step
    opened, original = context.open(), registry.open_model(context.model)
    net = registry.network(opened)
    data = training_data.gather(original, context.calibration, step.augmentation_factor)
    device = next(net.parameters()).device
    stored = {
        name: value.to(device) for name, value in parquet.read_tensors(source / parquet.WEIGHTS)
    }
    blocks: list[dict] = []
    before = data.loss(opened)
    pruned = any("prune" in earlier for earlier in context.steps_before)
    learned = blockwise.reconstruct(
        net,
        registry.network(original),
        _trainable(net, stored, pruned),
        data,
        step,
        context.calibration.seed,
        _reporter(blocks),
    )
    state = net.state_dict()
    floats = {
        name: value
        for name, value in stored.items()
        if name in state and isinstance(value, torch.Tensor)
    }
    for name, value in floats.items():  # measured with the dtype that will be stored
        state[name].copy_(state[name].to(value.dtype))
    after = data.loss(opened)
    if after < before:
        stored |= {name: state[name].to(value.dtype) for name, value in floats.items()}
        stored |= {f"{name}.weight": value for name, value in learned.items()}
    manifest.write_candidate(folder, source, stored, context.card(net))
    result = meta(source)["result"]
    return {
        "linear_bits": result.get("linear_bits", 0.0),
        "sparsity": result.get("sparsity", 0.0),
        "coverage": result.get("coverage"),
        "blocks": blocks,
        "held_back": {
            "texts": data.held,
            "loss": data.measure,
            "before": before,
            "after": after,
            "kept": after < before,
        },
    }


def _trainable(net: Any, stored: dict, pruned: bool) -> dict:
    """Quantized weights by layer, and of a pruned network the float weights of linear layers.

    Word embeddings of a network with an output head are left out: they affect every token.
    """
    fixed = architecture.embeddings(net) if net.get_output_embeddings() is not None else {}
    linears = architecture.linears(net) if pruned else {}
    layers = {name.removesuffix(".weight"): value for name, value in stored.items()}
    return {
        name: value
        for name, value in layers.items()
        if (isinstance(value, Quantized) and name not in fixed) or name in linears
    }


def _reporter(rows: list[dict]) -> Callable[..., None]:
    text = "{block}: error on held-out text {before:.4f} -> {after:.4f}, {steps} steps, {seconds:.0f} s"

    def report(**row: Any) -> None:
        rows.append(row)
        print(text.format(**row), flush=True)

    return report
