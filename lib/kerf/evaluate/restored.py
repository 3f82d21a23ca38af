"""Which layer does the damage: the divergence that is left when that layer of a candidate is float again."""

from pathlib import Path

import numpy as np

from kerf import anatomy, models
from kerf.errors import Refused
from kerf.evaluate.kept import Kept


def by_layer(model: str, candidate: str | Path, chunks: np.ndarray, base: Path) -> list[dict]:
    """Rows of layer, kl (mean, nats), contexts: of the whole candidate ("none"), and with each block restored.

    chunks: the first contexts that the baseline was asked, of which the second half is scored; base: its answers.
    """
    import torch

    kept = Kept(base)
    opened, original = models.load(candidate), models.open_model(model)
    if len(_blocks(opened)) != len(_blocks(original)):
        return []  # of a candidate without some of the blocks, none has its twin
    chunks = torch.from_numpy(chunks)
    with torch.inference_mode():
        rows = [{"layer": "none", "kl": _divergence(opened, chunks, kept), "contexts": len(chunks)}]
        for name, block in _blocks(opened).items():
            own = {key: parameter.data for key, parameter in block.named_parameters()}
            floats = dict(original.get_submodule(name).named_parameters())
            for key, parameter in block.named_parameters():
                parameter.data = floats[key].data
            rows.append({"layer": name, "kl": _divergence(opened, chunks, kept), "contexts": len(chunks)})
            for key, parameter in block.named_parameters():
                parameter.data = own[key]
    return rows


def _blocks(net) -> dict:
    """The blocks; none where the network has no list of them."""
    try:
        return anatomy.blocks(net)
    except Refused:
        return {}


def _divergence(opened, chunks, kept) -> float:
    """Mean KL over the scored tokens of the chunks."""
    from kerf.evaluate.likelihood import against

    half, total = chunks.shape[1] // 2, 0.0
    scored = chunks.shape[1] - half
    for number, chunk in enumerate(chunks):
        logits = opened(chunk[None], use_cache=False, logits_to_keep=scored + 1).logits[0, :-1]
        total += float(against(kept.read(number * scored, scored), logits, chunk[half:])["kl"].mean())
    return total / len(chunks)
