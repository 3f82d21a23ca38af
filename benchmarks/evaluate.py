"""Seconds of comparing two language models, over the bare forward passes of both; and its memory by chunks of text.

Forward passes and Kerf's scoring (the baseline's answers kept in a file, the candidate's held against them)
run in turn in one process; the ratio is the median of the pairwise ratios. Memory is the peak of anonymous
memory above what it was before, for 4, 8 and 16 chunks.

    python benchmarks/evaluate.py [--chunks 16] [--rounds 3]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from memory import anonymous_peak

import kerf
from kerf import pipeline
from kerf.config import Calibration, Evaluation
from kerf.evaluate import causal, causal_inference

MODEL, STEP = "smollm2", {"quantize": {"method": "rtn", "bits": 4, "group_size": 64}}
GOAL = 1.2


def seconds(work) -> float:
    """Wall time of work()."""
    clock = time.perf_counter()
    work()
    return time.perf_counter() - clock


def bare(opened, chunks, size: int) -> None:
    """Forward passes alone, with logits for the scored half."""
    for piece in chunks.split(size):
        opened(piece, use_cache=False, logits_to_keep=chunks.shape[1] // 2 + 1)


def scored(models, chunks, size: int) -> None:
    """Both models' answers, the baseline's kept and the candidate's held against them."""
    order = np.arange(len(chunks))
    with tempfile.TemporaryDirectory() as folder:
        for first, opened in zip((True, False), models, strict=True):
            causal_inference.score(opened, chunks, order, size, Path(folder), first)


def main() -> None:
    """Run the benchmark and print every term."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=16, help="of 512 tokens of news")
    parser.add_argument("--rounds", type=int, default=3)
    chunks_asked, rounds = vars(parser.parse_args()).values()
    chunks = torch.from_numpy(causal.gather(MODEL, Evaluation(num_chunks=chunks_asked)).chunks)
    models = (
        kerf.open_model(MODEL),
        kerf.load(pipeline.build(MODEL, [STEP], Calibration(samples=8, max_length=128))),
    )
    size = causal.BATCH_TOKENS // chunks.shape[1]
    with torch.inference_mode():
        scored(models, chunks[:2], size)
        pairs = [
            (
                sum(seconds(lambda each=each: bare(each, chunks, size)) for each in models),
                seconds(lambda: scored(models, chunks, size)),
            )
            for _ in range(rounds)
        ]
        for title, side in (("forward passes", 0), ("evaluation", 1)):
            print(f"{title:15} {statistics.median(pair[side] for pair in pairs):7.2f} s")
        ratios = [ours / floor for floor, ours in pairs]
        print(
            f"{'ratio':15} median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), goal at most "
            f"{GOAL}; {len(chunks)} chunks of {chunks.shape[1]} tokens, {torch.get_num_threads()} threads, {rounds} rounds"
        )
        for count in (4, 8, 16):
            most = anonymous_peak(lambda count=count: scored(models, chunks[:count], size))
            print(f"{count:3} chunks: {most / 2**20:6.0f} MiB anonymous above the models")


if __name__ == "__main__":
    main()
