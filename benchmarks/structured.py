"""Smaller matrices by Kerf and by torch-pruning from the same sentences: what each loses, and how much faster it is.

The same share of feed-forward neurons goes on both sides; torch-pruning also takes neurons and heads together. Cosine is on evaluation sentences; speed is embeddings a second over the float model's, all of them
in turn in one process, the median of the rounds with its interval.

    python benchmarks/structured.py [--samples 1151] [--neurons 0.45] [--rounds 15] [--learned] [--environments DIR]
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from peers import ask_peer

import kerf
from kerf.config import Calibration
from kerf.core.paths import root
from kerf.data import corpora
from kerf.evaluate import stats as st
from kerf.models import architecture, registry
from kerf.models.families import encoder
from kerf.pipeline import build
from kerf.workbench.interactive.ablation import LayerAblation

MODEL, SENTENCES, TIMED = "minilm", 400, 64


def smaller(weights: dict[str, torch.Tensor]):
    """MiniLM with linear layers as small as `weights` has them. Its attention counts heads by the width of its layers."""
    opened = registry.open_model(MODEL)
    net = registry.network(opened)
    for name, layer in architecture.linears(net).items():
        layer.out_features, layer.in_features = weights[f"{name}.weight"].shape
        for part, parameter in layer.named_parameters():
            parameter.data = torch.empty_like(weights[f"{name}.{part}"])
    net.load_state_dict(weights, strict=False)
    return opened


def encoder_share(opened) -> float:
    """Share of the blocks' parameters that went."""

    def count(each):
        return sum(
            parameter.numel()
            for block in architecture.blocks(registry.network(each)).values()
            for parameter in block.parameters()
        )

    return 1 - count(opened) / count(registry.open_model(MODEL))


@torch.no_grad()
def ratios(baseline, candidates: list, batch: dict, rounds: int) -> np.ndarray:
    """Seconds of the baseline over those of each candidate, (rounds, candidates), in turn, after one round that does not count."""
    nets = [registry.network(each) for each in (baseline, *candidates)]
    seconds = np.zeros((rounds + 1, len(nets)))
    for number in range(rounds + 1):
        for place in np.roll(np.arange(len(nets)), number):
            clock = time.perf_counter()
            nets[place](**batch)
            seconds[number, place] = time.perf_counter() - clock
    return seconds[1:, :1] / seconds[1:, 1:]


def main() -> None:
    """Print a row for each, then how far Kerf's is from the goals: 1.3 times faster, cosine 0.90 without learning, 0.95 with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1151, help="calibration sentences of news")
    parser.add_argument(
        "--neurons", type=float, default=0.45, help="share of the feed-forward neurons that goes"
    )
    parser.add_argument(
        "--heads", type=float, default=1 / 3, help="share of heads, where torch-pruning takes both"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--learned", action="store_true", help="Kerf's also learned back, minutes more"
    )
    parser.add_argument(
        "--environments", type=Path, default=root() / ".venv-peers", help="a folder for each peer"
    )
    asked = parser.parse_args()
    calibration = Calibration(samples=asked.samples)
    cut = {"prune": {"method": "neurons", "sparsity": asked.neurons}}
    chains = {"kerf neurons": [cut]} | (
        {"kerf neurons, learned": [cut, {"reconstruct": {"minutes": 5}}]} if asked.learned else {}
    )
    found = {name: kerf.load(build(MODEL, chain, calibration)) for name, chain in chains.items()}
    python = asked.environments / "torchpruning" / "bin" / "python"
    for importance in ("magnitude", "activation"):
        for what, heads in (("neurons", 0.0), ("neurons and heads", asked.heads)):
            share = asked.neurons if not heads else 0.3
            more = {"neurons": share, "heads": heads, "importance": importance}
            found[f"torch-pruning {what}, {importance}"] = smaller(
                ask_peer("torchpruning", python, calibration, more, "structured_with")[0]
            )
    yardstick = LayerAblation(MODEL, "news", SENTENCES)
    baseline = registry.open_model(MODEL)
    sentences = corpora.evaluation_sentences("news", SENTENCES)[0][:TIMED]
    batch = encoder.tokenized(baseline, sentences, TIMED, 128)[0]
    speed = ratios(baseline, list(found.values()), batch, asked.rounds)
    for place, (name, opened) in enumerate(found.items()):
        cosine, faster = yardstick.measure(opened, name), st.median_interval(speed[:, place])
        print(
            f"{name:38} {encoder_share(opened):6.1%} of the encoder gone, cosine {cosine[0]:.4f} ({cosine[1]:.4f} to {cosine[2]:.4f}), "
            f"{faster[0]:.2f} times as fast ({faster[1]:.2f} to {faster[2]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
