"""The reconstruct stage: a quantized or pruned candidate in, the same out with what it has left learned anew."""

import time
from pathlib import Path

from kerf.config import Calibration, Reconstruct
from kerf.core.cache import artifact, meta
from kerf.core.errors import refuse
from kerf.core.memory import peak_rss_bytes, reset_peak_rss
from kerf.data import corpora
from kerf.models import architecture, families, manifest, registry
from kerf.tensors import parquet


def reconstruct(
    model: str,
    step: Reconstruct,
    calibration: Calibration,
    source: str | Path = "",
) -> Path:
    """Directory of the candidate that `step` makes of the quantized or pruned candidate `source`.

    Never worse than `source` on the text held back: where nothing was won, its weights are kept. Raises
    InputError without such a source, and when the calibration text leaves nothing to hold back.
    """
    if not source:
        raise refuse(
            "reconstruct",
            "first",
            "a step after quantize or prune: there is nothing to reconstruct yet",
        )
    registry.check_kind(model, "reconstruct", "encoder", "causal")
    families.of(registry.resolve(model)).check_held_back(registry.resolve(model), calibration)
    source = Path(source)
    key = {
        "step": step.model_dump(),
        "calibration": calibration.model_dump(),
        "texts": corpora.digest(calibration.texts),
    }
    key |= {
        "source": registry.weights_digest(source),
        "model": registry.weights_digest(registry.resolve(model)),
    }
    return artifact(
        "candidate", key, lambda folder: _make(folder, model, step, calibration, source)
    )


def _make(folder, model, step, calibration, source) -> dict:
    import torch

    from kerf.training import blockwise, training_data

    reset_peak_rss()
    clock = time.perf_counter()
    opened, original = registry.load(source), registry.open_model(model)
    given = training_data.gather(original, calibration, step.augmentation_factor)
    stored = dict(parquet.read_tensors(source / parquet.WEIGHTS))
    start, rows = given.loss(opened), []
    net = registry.network(opened)
    card = manifest.verify(source)
    weights = _learnable(net, stored, any("prune" in each for each in card["steps"]))
    learned = blockwise.reconstruct(
        net, registry.network(original), weights, given, step, calibration.seed, _report(rows)
    )
    kept = {name: value.dtype for name, value in stored.items() if isinstance(value, torch.Tensor)}
    found = {name: value for name, value in net.state_dict().items() if name in kept}
    for name, value in found.items():  # what is measured is what will be stored
        value.copy_(value.to(kept[name]))
    end = given.loss(opened)
    if end < start:
        stored |= {name: value.to(kept[name]) for name, value in found.items()}
        stored |= {f"{name}.weight": value for name, value in learned.items()}
    steps = [*card["steps"], {"reconstruct": step.model_dump()}]
    card = {key: card[key] for key in ("model", "kind", "class")}
    manifest.write_candidate(folder, source, stored, {**card, "steps": steps})
    return {
        "model": model,
        "steps": steps,
        "compress_seconds": time.perf_counter() - clock,
        "compress_peak_rss_bytes": peak_rss_bytes(),
        **{name: meta(source)["result"].get(name, 0.0) for name in ("linear_bits", "sparsity")},
        "blocks": rows,
        "held_back": {
            "texts": given.held,
            "loss": given.measure,
            "before": start,
            "after": end,
            "kept": end < start,
        },
        **manifest.size(folder),
    }


def _learnable(net, stored: dict, sparse: bool) -> dict:
    """Quantized weights by layer, and of a pruned network (`sparse`) the float ones of linear layers.

    Word embeddings that are, or stand beside, a head stay: they decide every token.
    """
    from kerf.tensors.quantized import Quantized

    apart = architecture.embeddings(net) if net.get_output_embeddings() is not None else {}
    layers = {name.removesuffix(".weight"): value for name, value in stored.items()}
    pruned = architecture.linears(net) if sparse else {}
    return {
        n: value
        for n, value in layers.items()
        if isinstance(value, Quantized) and n not in apart or n in pruned
    }


def _report(rows: list[dict]):
    def report(**row) -> None:
        rows.append(row)
        said = "{block}: error on held-back text {before:.4f} -> {after:.4f}, {steps} steps, {seconds:.0f} s"
        print(said.format(**row), flush=True)

    return report
