"""Anonymous memory of calibrating and quantizing, above what imports take: flat in layers and in batches.

Encoders of random weights, 2 to 16 layers, and 1 to 8 times the calibration text, each in a process of its
own whose anonymous memory is read every few milliseconds; a chart goes to benchmarks/memory.svg. With
--large one encoder of 3 GiB instead, from safetensors shards to Parquet, in under 1 GiB; with --causal
SmolLM2 at 4 bits, on 64 chunks of 512 tokens, in its own size as float32 and 400 MB.

    python benchmarks/memory.py [--large | --causal]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kerf.core.memory import anonymous_bytes

SMALL = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
LARGE_LAYERS, LIMIT = 62, 2**30


def write_model(folder: Path, layers: int, sizes: dict) -> int:
    """A sentence-transformers directory of random weights in shards; returns the bytes of the weights."""
    import torch
    from transformers import BertConfig, BertModel

    from kerf.models import registry

    origin = registry.resolve("minilm")
    shutil.copytree(
        origin, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "meta.json")
    )
    shutil.copytree(origin / "1_Pooling", folder / "1_Pooling", dirs_exist_ok=True)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(
        json.dumps(
            {**json.loads(pooling.read_text()), "word_embedding_dimension": sizes["hidden_size"]}
        )
    )
    torch.manual_seed(0)
    net = BertModel(BertConfig.from_pretrained(origin, **sizes, num_hidden_layers=layers))
    net.save_pretrained(folder, max_shard_size="500MB")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def anonymous_peak(work: Callable[[], object]) -> int:
    """Peak increase of anonymous memory while work() runs, in bytes. Linux only."""
    before, stop = anonymous_bytes(), threading.Event()
    samples = [before]

    def watch() -> None:
        while not stop.wait(0.003):
            samples.append(anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        stop.set()
        watcher.join()
    return max(samples) - before


def measured(model: str, samples: int, bits: int, length: int) -> None:
    """Quantize in this process, and print the peak of anonymous memory above what imports took, in bytes."""
    import sentence_transformers  # noqa: F401  imports are not what is measured

    from kerf import pipeline
    from kerf.config import Calibration
    from kerf.tensors import numba_kernels  # noqa: F401  compiled before anything is measured

    clock = time.perf_counter()
    step = {"method": "gptq", "bits": bits, "group_size": 64, "clip": "hessian"}
    peak = anonymous_peak(
        lambda: pipeline.build(
            model, [{"quantize": step}], Calibration(samples=samples, max_length=length)
        )
    )
    print(json.dumps({"peak": peak, "seconds": time.perf_counter() - clock}))


def ask(model: Path, samples: int, bits: int = 2, length: int = 32) -> dict:
    """`measured` in a fresh process, with a data folder of its own that is removed."""
    import os

    from kerf.core.paths import data_folder

    with tempfile.TemporaryDirectory(dir=data_folder()) as data:
        os.symlink(data_folder() / "sources", Path(data) / "sources")
        command = [
            sys.executable,
            __file__,
            "--measured",
            str(model),
            "--samples",
            str(samples),
            "--bits",
            str(bits),
            "--length",
            str(length),
        ]
        done = subprocess.run(
            command,
            env={**os.environ, "KERF_DATA": data},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads(done.stdout.splitlines()[-1])


def flat() -> None:
    """Peaks by layers and by calibration sentences, and their chart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    with tempfile.TemporaryDirectory() as scratch:
        layers = [2, 4, 8, 16]
        weights = [write_model(Path(scratch) / str(count), count, SMALL) for count in layers]
        by_layers = [ask(Path(scratch) / str(count), 64)["peak"] for count in layers]
        samples = [64, 128, 256, 512]
        by_samples = [ask(Path(scratch) / "4", count)["peak"] for count in samples]
    for count, size, peak in zip(layers, weights, by_layers, strict=True):
        print(
            f"{count:3} layers, {size / 2**20:4.0f} MiB of weights,  64 sentences: {peak / 2**20:6.0f} MiB anonymous"
        )
    for count, peak in zip(samples, by_samples, strict=True):
        print(
            f"  4 layers, {weights[1] / 2**20:4.0f} MiB of weights, {count:3} sentences: {peak / 2**20:6.0f} MiB anonymous"
        )
    left.plot(layers, [peak / 2**20 for peak in by_layers], "o-", label="anonymous memory")
    left.plot(layers, [size / 2**20 for size in weights], "x--", label="the weights themselves")
    right.plot(samples, [peak / 2**20 for peak in by_samples], "o-")
    left.set(xlabel="layers", ylabel="MiB above imports", ylim=(0, None))
    right.set(xlabel="calibration sentences")
    left.legend(frameon=False)
    figure.savefig(Path(__file__).with_name("memory.svg"))


def large() -> None:
    """One model of 3 GiB."""
    from kerf.core.paths import data_folder

    with tempfile.TemporaryDirectory(dir=data_folder()) as scratch:
        size = write_model(Path(scratch) / "large", LARGE_LAYERS, LARGE)
        found = ask(Path(scratch) / "large", 8)
    verdict = "under" if found["peak"] < LIMIT else "OVER"
    print(
        f"{size / 2**30:.2f} GiB of weights: {found['peak'] / 2**20:.0f} MiB anonymous above imports, {verdict} 1 GiB; "
        f"{found['seconds']:.0f} s"
    )


def causal() -> None:
    """SmolLM2, as the language model that is at hand."""
    from kerf.models import registry

    size = 4 * registry.describe("smollm2")["parameters"]
    # By its folder, or the fresh process would convert the file of the package first.
    found, limit = ask(registry.resolve("smollm2"), 64, bits=4, length=512), size + 400e6
    verdict = "under" if found["peak"] < limit else "OVER"
    print(
        f"SmolLM2, {size / 1e6:.0f} MB in float32: {found['peak'] / 1e6:.0f} MB anonymous above imports, {verdict} {limit / 1e6:.0f} MB; "
        f"{found['seconds']:.0f} s"
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="the model of 3 GiB")
    parser.add_argument("--causal", action="store_true", help="SmolLM2")
    parser.add_argument("--measured", help=argparse.SUPPRESS)
    for name in ("samples", "bits", "length"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measured:
        measured(arguments.measured, arguments.samples, arguments.bits, arguments.length)
    else:
        large() if arguments.large else causal() if arguments.causal else flat()


if __name__ == "__main__":
    main()
