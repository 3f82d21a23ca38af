"""Seconds of GPTQ and SparseGPT, over the floor that the method cannot avoid: MiniLM at 2 bits, or SmolLM2 at 4.

Floor: the forward passes that the method needs (of the model as it is being quantized, and with
asymmetric calibration of the float model beside it), the moment products (one triangle of the symmetric
X^T X, all of the drift), and the Cholesky factorizations with the triangular inverse. Products of
calibration text are rounded on both sides as `kerf.tensors.matmul_precision` says. Floor and method run in turn in one
process; the ratio is the median of the pairwise ratios. `plain` is the published GPTQ, `full` what Kerf does by
default: asymmetric calibration and two sweeps. `sparsegpt` prunes half of the weights, with the same two.

    python benchmarks/quantize.py [--model minilm] [--rounds 5] [--samples 256] [--only full]
"""

import argparse
import statistics
import time

import torch

from kerf.calibration import activations
from kerf.calibration.layer import Calibrated
from kerf.calibration.sequential import rows
from kerf.config import Calibration
from kerf.config.prune import Prune, SparseGPT
from kerf.config.quantize import Gptq, Quantize
from kerf.models import families, registry
from kerf.prune.layers import prune_layers
from kerf.quantize.compress import compress
from kerf.tensors.matmul_precision import rounded_products

OPTIONS = {"method": "gptq", "group_size": 64, "clip": "hessian", "embeddings": 32}
BITS, LENGTH, UNIT = (
    {"minilm": 2, "smollm2": 4},
    {"minilm": 128, "smollm2": 512},
    {"minilm": "sentences", "smollm2": "chunks"},
)


def steps(bits: int) -> dict[str, Quantize | Prune]:
    """What is timed, by name."""
    return {
        "plain": Gptq(**OPTIONS, bits=bits, asymmetric_calibration=False, sweeps=0),
        "full": Gptq(**OPTIONS, bits=bits),
        "sparsegpt": SparseGPT(sparsity=0.5),
    }


def seconds(work) -> tuple[float, object]:
    """Wall time and result of work()."""
    clock = time.perf_counter()
    result = work()
    return time.perf_counter() - clock, result


@torch.no_grad()
def products(net, groups, batches) -> float:
    """Seconds of X^T X over the inputs of every group, apart from the passes that they come from."""
    modules, mask, total = dict(net.named_modules()), [None], [0.0]
    H = {names[0]: torch.zeros(2 * [modules[names[0]].weight.shape[1]]) for names in groups}

    def multiply(name, inputs):
        X = rows(inputs, mask[0])
        total[0] += seconds(lambda: H[name].addmm_(X.T, X))[0]

    hooks = [
        modules[n].register_forward_pre_hook(lambda _, args, n=n: multiply(n, args[0])) for n in H
    ]
    for batch in batches:
        mask[0] = batch["attention_mask"]
        with rounded_products():
            net(**batch)
    for hook in hooks:
        hook.remove()
    return total[0]


@torch.no_grad()
def floor(net, groups, batches, moments, networks: int) -> dict[str, float]:
    """Seconds of each term; networks: 2 with asymmetric calibration, else 1."""
    with rounded_products():
        forward = seconds(lambda: [net(**batch) for batch in batches])[0]

    def factors():
        for H in moments:
            L, _ = torch.linalg.cholesky_ex(H)
            torch.linalg.solve_triangular(L, torch.eye(len(H)), upper=False)

    def second_factors():
        for H in moments:
            torch.linalg.cholesky_ex(H)

    whole = products(net, groups, batches)
    extra = seconds(second_factors)[0] if networks == 2 else 0.0
    return {
        "forward passes": networks * forward,
        "moment products": whole * (networks - 0.5),
        "factorizations": seconds(factors)[0] + extra,
    }


def method(model: str, step: Quantize | Prune, groups, batches) -> dict[str, float]:
    """Seconds of cutting every layer of a freshly opened model."""
    net, reference = (registry.network(registry.open_model(model)) for _ in range(2))
    text = Calibrated(net, reference, groups, batches)
    if isinstance(step, Prune):
        return {"sparsegpt": seconds(lambda: [None for _ in prune_layers(text, step)])[0]}
    return {"gptq": seconds(lambda: [None for _ in compress(text, step, {})])[0]}


def main() -> None:
    """Run the benchmark and print every term."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=BITS, default="minilm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--samples", type=int, default=256, help="calibration sentences or chunks of news"
    )
    parser.add_argument(
        "--only", nargs="+", choices=steps(4), default=list(steps(4)), help="what is timed"
    )
    model, rounds, samples, only = vars(parser.parse_args()).values()
    opened = registry.open_model(model)
    batches = families.of_opened(opened).batches(
        opened, Calibration(samples=samples, max_length=LENGTH[model])
    )
    net = registry.network(opened)
    found = list(activations.collect(net, batches))
    groups, moments = [group.names for group in found], [group.second for group in found]
    for H in moments:
        H.diagonal().add_(0.01 * H.diagonal().mean())
    for name, step in ((name, step) for name, step in steps(BITS[model]).items() if name in only):
        method(model, step, groups, batches)  # compiles what is not compiled yet
        pairs = [
            (
                floor(net, groups, batches, moments, 1 + step.asymmetric_calibration),
                method(model, step, groups, batches),
            )
            for _ in range(rounds)
        ]
        for title, side in (("floor", 0), ("kerf", 1)):
            for term in pairs[0][side]:
                print(
                    f"{name:9} {title:6} {term:18} {statistics.median(p[side][term] for p in pairs):7.2f} s"
                )
        ratios = [sum(ours.values()) / sum(least.values()) for least, ours in pairs]
        print(
            f"{name:9} ratio  median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), goal at most 1.3; "
            f"{model}, {samples} {UNIT[model]}, {torch.get_num_threads()} threads, {rounds} rounds",
            flush=True,
        )


if __name__ == "__main__":
    main()
