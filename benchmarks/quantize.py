"""Seconds of calibrate + quantize for int2-gptq on MiniLM, over the floor that the method cannot avoid.

Floor: two forward passes over the calibration text (one of the float model, one of the model as it is
being quantized), the matrix products of second moments in each, and for every group of layers a
Cholesky factorization, an inverse and a second factorization. Floor and method run in turn in one
process; the ratio is the median of the pairwise ratios. Peak memory is of a process of its own.

    python benchmarks/quantize.py [--rounds 5]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from kerf import calibrate, models, store, texts
from kerf.lockstep import rows
from kerf.memory import peak_rss_bytes, reset_peak_rss
from kerf.quantize.gptq import inverse_factor
from kerf.quantize.stage import compress
from kerf.steps import Calibration, Quantize

STEP = Quantize(method="gptq", bits=2, group_size=64, clip="hessian")
SPEC = Calibration()


def prepare():
    """The model and its calibration batches."""
    opened = models.open_model("minilm")
    sample = texts.calibration_sentences(SPEC.texts, SPEC.samples, SPEC.seed)
    return opened, models.batches(opened, sample, calibrate.BATCH_SIZE, SPEC.max_length)


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
def floor(net, batches, inputs, moments) -> dict[str, float]:
    """Seconds of each term."""
    forward = seconds(lambda: [net(**batch) for batch in batches])[0]

    def products():
        for pieces in inputs:
            H = torch.zeros(pieces[0].shape[1], pieces[0].shape[1])
            for piece in pieces:
                H.addmm_(piece.T, piece)

    factors = seconds(lambda: [inverse_factor(H) for H in moments])[0]
    return {"2 forward passes": 2 * forward, "2 x moment products": 2 * seconds(products)[0], "factorizations": factors}


def method(batches) -> dict[str, float]:
    """Seconds of each part of Kerf's path, on a freshly opened model."""
    opened = models.open_model("minilm")
    net = models.network(opened)
    took, groups = seconds(lambda: calibrate.collect(net, batches))
    statistics_of = {f"second/{group.names[0]}": group.second / group.tokens for group in groups}
    names = [group.names for group in groups]
    quantizing, (done, _) = seconds(lambda: compress(net, STEP, names, statistics_of, batches))
    tensors = {name: done.get(name.removesuffix(".weight"), value) for name, value in net.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        writing = seconds(lambda: store.write_weights(Path(folder) / "weights.parquet", tensors))[0]
    return {"calibrate": took, "quantize": quantizing, "pack and write": writing}


def memory() -> None:
    """Print peak memory above what imports take, in bytes, of calibrate + quantize in this process."""
    import sentence_transformers  # noqa: F401

    reset_peak_rss()
    before = peak_rss_bytes()
    _, batches = prepare()
    method(batches)
    print(json.dumps({"above": peak_rss_bytes() - before, "model": models.describe("minilm")["bytes"]}))


def main() -> None:
    """Run the benchmark and print every term."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        return memory()
    opened, batches = prepare()
    net = models.network(opened)
    groups = calibrate.collect(net, batches)
    inputs, moments = captured(net, groups, batches), [group.second for group in groups]
    rounds = []
    for _ in range(arguments.rounds):
        rounds.append((floor(net, batches, inputs, moments), method(batches)))
    for title, side in (("floor", 0), ("kerf", 1)):
        for term in rounds[0][side]:
            print(f"{title:6} {term:22} {statistics.median(r[side][term] for r in rounds):7.2f} s")
    ratios = [sum(ours.values()) / sum(least.values()) for least, ours in rounds]
    print(f"ratio  median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), goal at most 2; "
          f"{torch.get_num_threads()} threads, {arguments.rounds} rounds")  # fmt: skip
    done = subprocess.run([sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True)
    peak = json.loads(done.stdout.splitlines()[-1])
    print(f"memory {peak['above'] / 1e6:.0f} MB above imports, {peak['above'] / peak['model']:.1f} x the model's bytes")


if __name__ == "__main__":
    main()
