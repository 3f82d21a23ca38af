"""The reconstruct stage: a quantized candidate in, the same with learned codes, scales and zero points out."""

import time
from pathlib import Path

from kerf import models, store, texts
from kerf.artifacts import artifact, meta
from kerf.errors import refuse
from kerf.kinds import encoder
from kerf.memory import peak_rss_bytes, reset_peak_rss
from kerf.steps import Calibration, Reconstruct


def reconstruct(
    model: str, step: Reconstruct, calibration: Calibration, source: str | Path = "", device: str = "cpu"
) -> Path:
    """Directory of the candidate that `step` makes of the quantized candidate `source`.

    Never worse than `source` on the text held back: where nothing was won, its weights are kept. Raises
    Refused without a quantized source, and when the calibration text leaves nothing to hold back.
    """
    if not source:
        raise refuse("reconstruct", "first", "a step after quantize: there is nothing to reconstruct yet")
    models.check_encoder(model, "reconstruct")
    held = texts.held_back(calibration.texts, calibration.samples, calibration.seed)
    key = {"step": step.model_dump(), "calibration": calibration.model_dump(), "held": held}
    source = Path(source)
    key |= {"source": models.weights_digest(source), "model": models.weights_digest(models.resolve(model))}
    return artifact("candidate", key, lambda folder: _make(folder, model, step, calibration, source, held, device))


def _make(folder, model, step, calibration, source, held, device) -> dict:
    import torch

    from kerf.evaluate.quick import embed, fidelity
    from kerf.quantize.grid import Quantized
    from kerf.reconstruct.material import batched, splices
    from kerf.reconstruct.train import reconstruct as learn

    reset_peak_rss()
    clock = time.perf_counter()
    opened, original = models.load(source, device), models.open_model(model, device)
    net = models.network(opened)
    stored = dict(store.read_tensors(source / store.WEIGHTS))
    weights = {n.removesuffix(".weight"): t for n, t in stored.items() if isinstance(t, Quantized)}
    sample = texts.calibration_sentences(calibration.texts, calibration.samples, calibration.seed)
    generator = torch.Generator().manual_seed(calibration.seed)
    fit = batched(splices(encoder.token_ids(opened, sample, calibration.max_length), step.splices, generator), opened)
    judge = batched(encoder.token_ids(opened, held, calibration.max_length), opened)
    aim = embed(original, judge)
    start, rows = fidelity(embed(opened, judge), aim), []
    learned = learn(net, models.network(original), weights, fit, judge, step.steps,
                    step.joint_steps, 60 * step.minutes, calibration.seed,
                    pool=lambda states, mask: encoder.pool(opened, states, mask), report=_report(rows))  # fmt: skip
    for name, value in net.state_dict().items():  # what is measured is what will be stored
        if name.removesuffix(".weight") not in learned:
            value.copy_(value.to(stored[name].dtype))
    end = fidelity(embed(opened, judge), aim)
    better = end > start
    if better:
        found = net.state_dict()
        floats = {n: found[n].to(value.dtype) for n, value in stored.items() if isinstance(value, torch.Tensor)}
        stored = {**{f"{name}.weight": value for name, value in learned.items()}, **floats}
    card = store.verify(source)
    steps = [*card["steps"], {"reconstruct": step.model_dump()}]
    kept = {key: card[key] for key in ("model", "kind", "class")}
    store.write_candidate(folder, source, stored, {**kept, "steps": steps})
    return {
        "model": model,
        "steps": steps,
        "compress_seconds": time.perf_counter() - clock,
        "compress_peak_rss_bytes": peak_rss_bytes(),
        "linear_bits": meta(source)["result"]["linear_bits"],
        "blocks": rows,
        "held_back": {"sentences": len(held), "before": start, "after": end, "kept": better},
        **store.size(folder),
    }


def _report(rows: list[dict]):
    def report(**row) -> None:
        rows.append(row)
        said = "{block}: error on held-back text {before:.4f} -> {after:.4f}, {steps} steps, {seconds:.0f} s"
        print(said.format(**row), flush=True)

    return report
