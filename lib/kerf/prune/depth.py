"""Depth: whole blocks removed, those that change their input least.

The importance of a block is 1 - the mean cosine of its output to its input over the tokens of the calibration text (block
influence, ShortGPT, Men et al. 2024, arXiv:2403.03853). The blocks behind a removed one move up, and so do the names of their tensors.
"""

from collections.abc import Iterator
from typing import Any

import torch

from kerf.calibration.layer import Calibrated
from kerf.calibration.sequential import rows
from kerf.config.prune import Depth
from kerf.models import architecture
from kerf.models.hooks import attached, on_outputs
from kerf.prune.layers import PrunedLayer


def prune_network(text: Calibrated, step: Depth) -> Iterator[PrunedLayer]:
    """Remove blocks of `text.net` in place: the nearest whole number to the step's sparsity, at least one and never all."""
    net: Any = text.net
    importance = influence(net, text.batches)
    names = list(importance)
    count = min(max(1, round(step.sparsity * len(names))), len(names) - 1)
    removed = sorted(names, key=lambda name: importance[name])[:count]
    stay = [index for index, name in enumerate(names) if name not in removed]
    path = names[0].rpartition(".")[0]
    blocks = net.get_submodule(path)
    net.set_submodule(path, torch.nn.ModuleList(blocks[index] for index in stay))
    if getattr(net.config, "layer_types", None):
        net.config.layer_types = [net.config.layer_types[index] for index in stay]
    net.config.num_hidden_layers = len(stay)
    for name, layer in architecture.linears(text.reference).items():
        block = next((block for block in names if name.startswith(f"{block}.")), None)
        if block is not None:
            gone = block in removed
            note = f"block influence {importance[block]:.4f}: {'dropped' if gone else 'stays'}"
            yield PrunedLayer(name, None if gone else layer.weight.data, note, float(gone))


@torch.no_grad()
def influence(net: torch.nn.Module, batches: list[dict]) -> dict[str, float]:
    """1 - mean cosine of output to input of every block, by name in the order they run."""
    blocks = architecture.blocks(net)
    sums, counts = dict.fromkeys(blocks, 0.0), dict.fromkeys(blocks, 0)

    def add(name: str, args: tuple, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        mask = batch["attention_mask"]
        before, after = rows(args[0], mask), rows(hidden, mask)
        cosines = torch.nn.functional.cosine_similarity(before, after)
        sums[name] += float(cosines.double().sum())
        counts[name] += len(cosines)

    with attached(on_outputs(blocks, add)):
        for batch in batches:
            net(**batch)
    return {name: 1 - sums[name] / counts[name] for name in blocks}
