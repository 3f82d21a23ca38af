"""Seconds of GPTQ on MiniLM at 2 bits, over the floor that the method cannot avoid.

Floor: the forward passes that the method needs (of the model as it is being quantized, and with
asymmetric calibration of the float model beside it), the moment products (one triangle of the symmetric
X^T X, all of the drift), and the Cholesky factorizations with the triangular inverse. Floor and method
run in turn in one process; the ratio is the median of the pairwise ratios. `plain` is the published
GPTQ, `full` what Kerf does by default: asymmetric calibration and two sweeps.

    python benchmarks/quantize.py [--rounds 5] [--samples 256]
"""

import argparse
import statistics
import time

import torch
from kerf import calibrate, models, texts
from kerf.kinds import encoder
from kerf.lockstep import rows
from kerf.quantize.compress import compress
from kerf.steps import Calibration, Quantize

OPTIONS = {"method": "gptq", "bits": 2, "group_size": 64, "clip": "hessian", "embeddings": 32}
STEPS = {
    "plain": Quantize(**OPTIONS, asymmetric_calibration=False, sweeps=0),
    "full": Quantize(**OPTIONS),
}


def prepare(spec: Calibration):
    """The model and its calibration batches."""
    opened = models.open_model("minilm")
    sample = texts.calibration_sentences(spec.texts, spec.samples, spec.seed)
    return opened, encoder.tokenized(opened, sample, encoder.BATCH_SIZE, spec.max_length)


def seconds(work) -> tuple[float, object]:
    """Wall time and result of work()."""
    clock = time.perf_counter()
    result = work()
    return time.perf_counter() - clock, result


@torch.no_grad()
def captured(net, groups, batches) -> list[torch.Tensor]:
    """The (tokens, features) inputs of every group, for timing the products apart from the passes."""
    kept, mask = {group.names[0]: [] for group in groups}, [None]
    modules = dict(net.named_modules())
    hooks = [
        modules[name].register_forward_pre_hook(lambda _, a, name=name: kept[name].append(rows(a[0], mask[0])))
        for name in kept
    ]
    for batch in batches:
        mask[0] = batch["attention_mask"]
        net(**batch)
    for hook in hooks:
        hook.remove()
    return list(kept.values())


@torch.no_grad()
def floor(net, batches, inputs, moments, networks: int) -> dict[str, float]:
    """Seconds of each term; networks: 2 with asymmetric calibration, else 1."""
    forward = seconds(lambda: [net(**batch) for batch in batches])[0]

    def products():
        for pieces in inputs:
            H = torch.zeros(pieces[0].shape[1], pieces[0].shape[1])
            for piece in pieces:
                H.addmm_(piece.T, piece)

    def factors():
        for H in moments:
            L, _ = torch.linalg.cholesky_ex(H)
            torch.linalg.solve_triangular(L, torch.eye(len(H)), upper=False)

    def second_factors():
        for H in moments:
            torch.linalg.cholesky_ex(H)

    whole = seconds(products)[0]
    extra = seconds(second_factors)[0] if networks == 2 else 0.0
    return {"forward passes": networks * forward, "moment products": whole * (networks - 0.5),
            "factorizations": seconds(factors)[0] + extra}  # fmt: skip


def method(step: Quantize, groups, batches) -> dict[str, float]:
    """Seconds of quantizing every layer of a freshly opened model."""
    net, reference = (models.network(models.open_model("minilm")) for _ in range(2))
    return {"gptq": seconds(lambda: [None for _ in compress(net, reference, step, groups, {}, batches)])[0]}


def main() -> None:
    """Run the benchmark and print every term."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=256, help="calibration sentences of news")
    rounds, samples = vars(parser.parse_args()).values()
    opened, batches = prepare(Calibration(samples=samples))
    net = models.network(opened)
    found = list(calibrate.collect(net, batches))
    groups, moments = [group.names for group in found], [group.second for group in found]
    for H in moments:
        H.diagonal().add_(0.01 * H.diagonal().mean())
    inputs = captured(net, found, batches)
    for name, step in STEPS.items():
        method(step, groups, batches)  # compiles what is not compiled yet
        pairs = [(floor(net, batches, inputs, moments, 1 + step.asymmetric_calibration), method(step, groups, batches))
                 for _ in range(rounds)]  # fmt: skip
        for title, side in (("floor", 0), ("kerf", 1)):
            for term in pairs[0][side]:
                print(f"{name:6} {title:6} {term:18} {statistics.median(p[side][term] for p in pairs):7.2f} s")
        ratios = [sum(ours.values()) / sum(least.values()) for least, ours in pairs]
        print(f"{name:6} ratio  median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
              f"goal at most 1.3; {samples} sentences, {torch.get_num_threads()} threads, {rounds} rounds")  # fmt: skip


if __name__ == "__main__":
    main()
