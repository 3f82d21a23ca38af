"""Kerf's GPTQ and GPTQModel's on SmolLM2 at 4 bits, group 64: wall time in turn, and perplexity on the same tokens.

Both see the same calibration tokens on two threads, and keep word embeddings and head at 8 bits as Kerf rounds
them. Time is of calibration and quantizing, imports apart; Kerf's opens the model and writes the file too. Perplexity is that of 128 chunks of
512 tokens of wiki, the second half of each scored; the ratio of the two is paired by token, its interval
drawn over documents.

    python benchmarks/causal_peers.py [--rounds 2] [--samples 32] [--length 256]
"""

import argparse
import os
import statistics

import numpy as np
import pandas as pd
from kerf import calibrate, evaluate
from kerf import statistics as st
from kerf.artifacts import meta, now
from kerf.pipeline import build
from kerf.quantize import elsewhere
from kerf.steps import Calibration, Evaluation, Quantize

MODEL = "smollm2"
STEPS = {
    "kerf": {"method": "gptq", "bits": 4, "group_size": 64, "clip": "hessian"},
    "gptqmodel": {"method": "gptqmodel", "bits": 4, "group_size": 64},
}


def seconds(name: str, spec: Calibration) -> float:
    """Calibrate and quantize anew; what the method itself took."""
    os.environ["KERF_FRESH"] = now()
    made = build(MODEL, [{"quantize": STEPS[name]}], spec)
    if name == "gptqmodel":
        folder = elsewhere.folder_of(MODEL, Quantize(**STEPS[name]), spec)
        return meta(folder)["result"]["seconds"]
    return meta(calibrate.calibrate(MODEL, spec))["result"]["calibrate_seconds"] + meta(made)["result"]["compress_seconds"]


def losses(name: str, spec: Calibration, text: Evaluation) -> tuple[np.ndarray, np.ndarray, dict]:
    """Loss and document of every scored token, and the metric rows by name."""
    compared = evaluate.compare(MODEL, build(MODEL, [{"quantize": STEPS[name]}], spec), text)
    items = pd.read_parquet(compared / "items.parquet")
    tokens = items[items.metric == "kl"]
    return tokens.candidate.to_numpy(), tokens.document.to_numpy(), {row["name"]: row for row in evaluate.read(compared)[0]}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32, help="calibration chunks of news")
    parser.add_argument("--length", type=int, default=256, help="tokens of a chunk")
    parser.add_argument("--contexts", type=int, default=128, help="chunks of wiki that are measured")
    rounds, samples, length, contexts = vars(parser.parse_args()).values()
    spec = Calibration(samples=samples, max_length=length)
    taken = {name: [] for name in STEPS}
    for _ in range(rounds):
        for name in STEPS:
            taken[name].append(seconds(name, spec))
    ratios = [theirs / ours for ours, theirs in zip(*taken.values(), strict=True)]
    for name, found in taken.items():
        print(f"{name:10} {statistics.median(found):7.1f} s")
    print(f"{'faster':10} {statistics.median(ratios):7.2f} times ({min(ratios):.2f} to {max(ratios):.2f}), goal at least 3; {rounds} rounds")
    os.environ.pop("KERF_FRESH")
    text = Evaluation(texts="wiki", contexts=contexts, context=512, passages=50, restored=0)
    (ours, documents, own), (theirs, _, other) = (losses(name, spec, text) for name in STEPS)
    for name, rows in (("kerf", own), ("gptqmodel", other)):
        kl, ratio = rows["kl_mean"], rows["perplexity_ratio"]
        print(f"{name:10} perplexity ratio {ratio['value']:.4f} ({ratio['low']:.4f} to {ratio['high']:.4f}), "
              f"mean KL {kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f})")  # fmt: skip
    mean, low, high = st.mean_interval(ours - theirs, documents)
    print(f"log perplexity of kerf's less gptqmodel's: {mean:+.4f} ({low:+.4f} to {high:+.4f}) on {len(ours):,} tokens, "
          f"goal at most +0.01; KL {own['kl_mean']['value'] / other['kl_mean']['value']:.2f} of gptqmodel's, goal at most 0.5")  # fmt: skip


if __name__ == "__main__":
    main()
