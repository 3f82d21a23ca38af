"""Kerf's GPTQ beside GPTQModel and llm-compressor on SmolLM2, group 64: wall time in turn, and what each loses.

All see the same calibration tokens on two threads, and keep word embeddings and head at 8 bits as Kerf rounds
them. Time is of calibration and quantizing, imports apart; Kerf's opens the model and writes the file too.
GPTQModel runs with its defaults, llm-compressor (once) with what did best of what it offers. Loss is on 128
chunks of 512 tokens of wiki, and on all 64 of the news that is not calibrated on, the second half of each scored;
differences are paired by token, their intervals drawn over documents.

    python benchmarks/causal_peers.py [--bits 4] [--rounds 2] [--samples 32] [--length 256] [--environments DIR]
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import kerf
from kerf.config import STEPS, Calibration, Evaluation, parse
from kerf.core.cache import meta, now, threads
from kerf.core.paths import root
from kerf.evaluate import causal, causal_inference
from kerf.evaluate import stats as st
from kerf.formats import imported
from kerf.models import families, registry
from kerf.pipeline import build

MODEL, GROUP = "smollm2", 64
NEWS = 64  # chunks


def steps(bits: int) -> dict[str, dict]:
    """The step of each method that is a step of Kerf. Plain: each layer by itself, as the peer does it, and no second look."""
    own = {"method": "gptq", "bits": bits, "group_size": GROUP, "clip": "hessian"}
    return {
        "kerf": own,
        "kerf, plain": {**own, "asymmetric_calibration": False, "sweeps": 0},
        "gptqmodel": {"method": "gptqmodel", "bits": bits, "group_size": GROUP, "act_order": False},
    }


def seconds(name: str, step: dict, spec: Calibration) -> float:
    """Quantize anew, from the text on; what the method itself took."""
    os.environ["KERF_FRESH"] = now()
    made = build(MODEL, [{"quantize": step}], spec)
    if name == "gptqmodel":
        return meta(imported.folder_of(MODEL, parse(STEPS["quantize"], step, "step"), spec))[
            "result"
        ]["seconds"]
    return meta(made)["result"]["compress_seconds"]


def llmcompressor(python: Path, spec: Calibration, **asked) -> tuple[dict, dict]:
    """Dequantized weights by name, and figures, from its own environment; asked: method and what it takes."""
    batches = families.causal.batches(registry.open_model(MODEL), spec)
    request = {
        "model": str(registry.resolve(MODEL)),
        "tokens": [row for batch in batches for row in batch["input_ids"].tolist()],
        "threads": threads(),
        **asked,
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "request.json").write_text(json.dumps(request))
        script = root() / "benchmarks" / "peers" / "causal_with_llmcompressor.py"
        done = subprocess.run(
            [python, script, Path(folder, "request.json"), folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"llm-compressor ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return load_file(Path(folder, "weights.safetensors")), json.loads(
            Path(folder, "figures.json").read_text()
        )


class Judge:
    """Scores of models on the same tokens, against the baseline's answers, which are kept in a file."""

    def __init__(self, contexts: int, folder: Path, texts: str = "wiki"):
        """folder: of the baseline's answers."""
        text = causal.gather(
            MODEL, Evaluation(texts=texts, num_chunks=contexts, passages=2, restored=0)
        )
        self.chunks, self.documents, self.folder = (
            torch.from_numpy(text.chunks),
            text.owners[:, text.scored].ravel(),
            folder,
        )
        folder.mkdir(parents=True)
        self.score(registry.open_model(MODEL), first=True)

    @torch.inference_mode()
    def score(self, opened, first: bool = False) -> dict[str, np.ndarray]:
        """kl, loss and base_loss of every scored token."""
        size = causal.BATCH_TOKENS // self.chunks.shape[1]
        found, _ = causal_inference.score(
            opened, self.chunks, np.arange(len(self.chunks)), size, self.folder, first
        )
        return {name: found[name].double().numpy() for name in ("kl", "loss", "base_loss")}

    def mean(self, values: np.ndarray) -> tuple[float, float, float]:
        """Mean and interval over documents."""
        return st.mean_interval(values, self.documents)


def lost(judge: Judge, found: dict[str, np.ndarray]) -> str:
    """What a model lost, in words."""
    (kl, low, high), ratio = (
        judge.mean(found["kl"]),
        np.exp(judge.mean(found["loss"] - found["base_loss"])),
    )
    return f"perplexity ratio {ratio[0]:.4f} ({ratio[1]:.4f} to {ratio[2]:.4f}), mean KL {kl:.4f} ({low:.4f} to {high:.4f})"


def report(texts: str, judge: Judge, scores: dict[str, dict]) -> None:
    """Print what every model lost on a text, and Kerf's against each peer's."""
    for name, found in scores.items():
        print(f"{texts}: {name:14} {lost(judge, found)}")
    for name, found in scores.items():
        for who, own in scores.items() if not name.startswith("kerf") else ():
            if who.startswith("kerf"):
                mean, low, high = judge.mean(own["loss"] - found["loss"])
                print(
                    f"{texts}: log perplexity of {who} less {name}'s: {mean:+.4f} ({low:+.4f} to {high:+.4f}) on {len(own['loss']):,} tokens, "
                    f"goal at most +0.01; KL {own['kl'].mean() / found['kl'].mean():.2f} of its, goal at most 0.5"
                )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=4, choices=(2, 3, 4))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32, help="calibration chunks of news")
    parser.add_argument("--length", type=int, default=256, help="tokens of a chunk")
    parser.add_argument(
        "--contexts", type=int, default=128, help="chunks of wiki that are measured"
    )
    parser.add_argument(
        "--environments", type=Path, default=root() / ".venv-peers", help="a folder for each peer"
    )
    asked = parser.parse_args()
    spec, chains = Calibration(samples=asked.samples, max_length=asked.length), steps(asked.bits)
    taken = {name: [] for name in chains}
    for _ in range(asked.rounds):
        for name, step in chains.items():
            taken[name].append(seconds(name, step, spec))
    for name, found in taken.items():
        ratios = [theirs / ours for ours, theirs in zip(found, taken["gptqmodel"], strict=True)]
        print(
            f"{name:14} {statistics.median(found):7.1f} s, {statistics.median(ratios):.2f} times as fast as gptqmodel "
            f"({min(ratios):.2f} to {max(ratios):.2f}), goal at least 3; {asked.rounds} rounds",
            flush=True,
        )
    os.environ.pop("KERF_FRESH")
    with tempfile.TemporaryDirectory() as folder:
        judges = {
            "wiki": Judge(asked.contexts, Path(folder, "wiki")),
            "news": Judge(NEWS, Path(folder, "news"), "news"),
        }
        opened = {
            name: kerf.load(build(MODEL, [{"quantize": step}], spec))
            for name, step in chains.items()
        }
        scores = {
            texts: {name: judge.score(each) for name, each in opened.items()}
            for texts, judge in judges.items()
        }
        python = asked.environments / "llmcompressor" / "bin" / "python"
        if python.is_file():
            weights, figures = llmcompressor(
                python, spec, method="gptq", bits=asked.bits, group_size=GROUP
            )
            found = opened["kerf"].load_state_dict(
                weights, strict=False
            )  # its linear layers, Kerf's embeddings
            assert weights and not found.unexpected_keys
            for texts, judge in judges.items():
                scores[texts]["llmcompressor"] = judge.score(opened["kerf"])
            print(f"{'llmcompressor':14} {figures['seconds']:7.1f} s, once; {figures['settings']}")
        for texts, judge in judges.items():
            report(texts, judge, scores[texts])


if __name__ == "__main__":
    main()
