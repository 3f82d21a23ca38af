"""Half of SmolLM2's weights left out, by Kerf and by llm-compressor from the same calibration tokens: what each loses.

Wanda and SparseGPT of both, linear layers without the head. Loss is on chunks of 512 tokens of wiki, the second
half of each scored; differences are paired by token, their intervals drawn over documents.

    python benchmarks/causal_pruning.py [--sparsity 0.5] [--samples 32] [--length 256] [--environments DIR]
"""

import argparse
import tempfile
from pathlib import Path

from causal_peers import MODEL, Judge, llmcompressor, lost

import kerf
from kerf.config import Calibration
from kerf.core.cache import meta
from kerf.core.paths import root
from kerf.pipeline import build

# Wanda as it was published, and with what is kept settled afterwards.
KERF = {
    "wanda": {"method": "wanda", "sweeps": 0},
    "wanda, settled": {"method": "wanda", "sweeps": 2},
    "sparsegpt": {"method": "sparsegpt"},
}


def main() -> None:
    """Print a row for each method, and Kerf's against the peer's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=32, help="calibration chunks of news")
    parser.add_argument("--length", type=int, default=256, help="tokens of a chunk")
    parser.add_argument("--contexts", type=int, default=64, help="chunks of wiki that are measured")
    parser.add_argument(
        "--environments", type=Path, default=root() / ".venv-peers", help="a folder for each peer"
    )
    asked = parser.parse_args()
    spec = Calibration(samples=asked.samples, max_length=asked.length)
    python = asked.environments / "llmcompressor" / "bin" / "python"
    with tempfile.TemporaryDirectory() as folder:
        judge, scores = Judge(asked.contexts, Path(folder, "answers")), {}

        def row(name, opened, seconds):
            scores[name] = judge.score(opened)
            print(f"{name:24} {lost(judge, scores[name])}, {seconds:.0f} s", flush=True)

        for name, step in KERF.items():
            made = build(MODEL, [{"prune": {**step, "sparsity": asked.sparsity}}], spec)
            row(name, opened := kerf.load(made), meta(made)["result"]["compress_seconds"])
        for method in ("wanda", "sparsegpt"):
            weights, figures = llmcompressor(python, spec, method=method, sparsity=asked.sparsity)
            opened.load_state_dict(
                weights, strict=False
            )  # all of its linear layers; the rest is the baseline's on both sides
            row(f"llm-compressor {method}", opened, figures["seconds"])
    for name in KERF:
        theirs = scores[f"llm-compressor {name.split(',')[0]}"]
        mean, low, high = judge.mean(scores[name]["loss"] - theirs["loss"])
        print(
            f"log perplexity of {name} less llm-compressor's: {mean:+.4f} ({low:+.4f} to {high:+.4f}), goal at most 0"
        )


if __name__ == "__main__":
    main()
