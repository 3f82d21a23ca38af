"""Which layer does the damage: the KL divergence that remains when one block of a candidate is restored to float."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerf.core.errors import InputError
from kerf.evaluate.causal_inference import last_logits
from kerf.models import architecture, registry
from kerf.models.hooks import attached, on_outputs

if TYPE_CHECKING:
    import torch


def by_layer(model: str, candidate: str | Path, chunks: np.ndarray, base: Path) -> list[dict]:
    """Rows of layer, kl (mean, nats), contexts: of the whole candidate ("none"), and with each block restored.

    chunks: the first that the baseline was scored on; base: its outputs. Empty where blocks are missing: the others have
    no counterpart then.
    """
    import torch

    from kerf.evaluate.likelihood import BaselineLogits, compare_to_baseline

    stored, count = BaselineLogits(base), chunks.shape[1] - chunks.shape[1] // 2
    opened, original = registry.open_source(model, candidate), registry.open_model(model)
    blocks, float_blocks = _blocks(opened), _blocks(original)
    if len(blocks) != len(float_blocks):
        return []
    kl = []
    with torch.inference_mode():
        for number, chunk in enumerate(torch.from_numpy(chunks)):
            baseline = stored.read(number * count, count)
            rows = _logits(opened, blocks, float_blocks, chunk, count)
            kl.append(
                [
                    float(compare_to_baseline(baseline, row, chunk[-count:])["kl"].mean())
                    for row in rows
                ]
            )
    means = zip(["none", *blocks], np.mean(kl, 0).tolist(), strict=True)
    return [{"layer": name, "kl": mean, "contexts": len(chunks)} for name, mean in means]


def _logits(
    opened: Any, blocks: dict, float_blocks: dict, chunk: "torch.Tensor", count: int
) -> Iterator["torch.Tensor"]:
    """Logits (count, vocabulary) of the candidate, then with each block restored in turn.

    The candidate's blocks before the restored one do not change, so their outputs are reused from the first pass.
    """
    outputs: dict[str, Any] = {}
    with attached(on_outputs(blocks, lambda name, _, output: outputs.update({name: output}))):
        yield last_logits(opened, chunk[None], count)[0]
    try:
        for name, block in blocks.items():
            block.forward = float_blocks[name].forward
            yield last_logits(opened, chunk[None], count)[0]
            block.forward = lambda *_, output=outputs[name], **__: output
    finally:
        for block in blocks.values():
            vars(block).pop("forward", None)


def _blocks(net: Any) -> dict[str, Any]:
    """The blocks by name; none where the network has no list of them."""
    try:
        return architecture.blocks(net)
    except InputError:
        return {}
