"""Which layer does the damage: the divergence that is left when that layer of a candidate is float again."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kerf.core.errors import InputError
from kerf.evaluate.baseline_logits import BaselineLogits
from kerf.models import architecture, registry
from kerf.models.hooks import attached, on_inputs, on_outputs


def by_layer(model: str, candidate: str | Path, chunks: np.ndarray, base: Path) -> list[dict]:
    """Rows of layer, kl (mean, nats), contexts: of the whole candidate ("none"), and with each block restored.

    chunks: the first contexts that the baseline was asked, of which the second half is scored; base: its answers.
    """
    import torch

    kept = BaselineLogits(base)
    opened, original = registry.load(candidate), registry.open_model(model)
    if len(_blocks(opened)) != len(_blocks(original)):
        return []  # of a candidate without some of the blocks, none has its twin
    names, kl = ["none", *_blocks(opened)], []
    with torch.inference_mode():
        for number, chunk in enumerate(torch.from_numpy(chunks)):
            scored = len(chunk) - len(chunk) // 2
            kl.append(list(_one(opened, original, chunk, kept.read(number * scored, scored))))
    means = np.mean(kl, 0)
    return [
        {"layer": name, "kl": float(each), "contexts": len(chunks)}
        for name, each in zip(names, means, strict=True)
    ]


def _one(opened, original, chunk, kept) -> Iterator[float]:
    """KL over the scored tokens of one chunk: of the candidate, then with each of its blocks restored in turn.

    What comes before a block is the candidate's own and does not change: it is taken from the first pass.
    """
    inputs, whole = {}, {}

    def look(name, args, output):
        inputs[name], whole[name] = args[0], isinstance(output, tuple)

    blocks = _blocks(opened)
    with attached(on_outputs(blocks, look)):
        yield _divergence(opened, chunk, kept)
    passed = []
    try:
        for name, block in blocks.items():
            own = {key: parameter.data for key, parameter in block.named_parameters()}
            for key, parameter in original.get_submodule(name).named_parameters():
                block.get_parameter(key).data = parameter.data
            with attached(on_inputs({name: block}, lambda name, args: (inputs[name], *args[1:]))):
                yield _divergence(opened, chunk, kept)
            for key, parameter in block.named_parameters():
                parameter.data = own[key]
            block.forward = lambda hidden, *_, name=name, **__: (hidden,) if whole[name] else hidden
            passed.append(block)
    finally:
        for block in passed:
            del block.forward


def _blocks(net) -> dict:
    """The blocks; none where the network has no list of them."""
    try:
        return architecture.blocks(net)
    except InputError:
        return {}


def _divergence(opened, chunk, kept) -> float:
    """Mean KL over the scored tokens of a chunk; kept: the baseline's answers to them."""
    from kerf.evaluate.likelihood import against

    half = len(chunk) // 2
    logits = opened(chunk[None], use_cache=False, logits_to_keep=len(chunk) - half + 1).logits[
        0, :-1
    ]
    return float(against(kept, logits, chunk[half:])["kl"].mean())
