"""Depth: whole blocks dropped, those that change their input least.

How much a block matters is 1 - the mean cosine of its output to its input over the tokens of the calibration
text (block influence, ShortGPT, Men et al. 2024, arXiv:2403.03853). A block that is dropped hands on what it
got. The blocks behind it move up, and so do the names of their tensors.
"""

import torch

from kerf.calibration.sequential import rows
from kerf.models import architecture
from kerf.models.hooks import attached, on_outputs


@torch.no_grad()
def influence(net, batches: list[dict]) -> dict[str, float]:
    """1 - mean cosine of output to input of every block, by name in the order they run."""
    sums, mask = {name: [0.0, 0] for name in architecture.blocks(net)}, [None]

    def look(name, args, output):
        before, after = (
            rows(each, mask[0])
            for each in (args[0], output[0] if isinstance(output, tuple) else output)
        )
        cosines = torch.nn.functional.cosine_similarity(before, after)
        sums[name][0] += float(cosines.double().sum())
        sums[name][1] += len(cosines)

    with attached(on_outputs(architecture.blocks(net), look)):
        for batch in batches:
            mask[0] = batch["attention_mask"]
            net(**batch)
    return {name: 1 - total / count for name, (total, count) in sums.items()}


def drop(net, batches: list[dict], sparsity: float) -> tuple[dict[str, float], dict[str, str]]:
    """Drop the nearest whole number of blocks, one at least and never all, in place.

    Returns the influence of every block, and the new names of those that stay by their old ones.
    """
    found = influence(net, batches)
    names = list(found)
    gone = min(max(1, round(sparsity * len(names))), len(names) - 1)
    stay = [name for name in names if name not in sorted(names, key=found.get)[:gone]]
    path = names[0].rpartition(".")[0]
    old = net.get_submodule(path)
    net.set_submodule(path, torch.nn.ModuleList(old[names.index(name)] for name in stay))
    if getattr(net.config, "layer_types", None):
        net.config.layer_types = [net.config.layer_types[names.index(name)] for name in stay]
    net.config.num_hidden_layers = len(stay)
    return found, {name: f"{path}.{index}" for index, name in enumerate(stay)}


def moved(name: str, places: dict[str, str]) -> str | None:
    """Name of a tensor after `drop`, None for one of a block that went; places: what `drop` gives."""
    path = next(iter(places)).rpartition(".")[0]
    if not name.startswith(f"{path}."):
        return name
    block = f"{path}.{name.removeprefix(f'{path}.').partition('.')[0]}"
    return name.replace(block, places[block], 1) if block in places else None
