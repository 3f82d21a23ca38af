"""Kerf beside other quantization libraries: same encoder, calibration text and bits, cosine to the float model.

Each peer of `environments/` quantizes the linear layers in an environment of its own (`make peers`), with the
script `benchmarks/peers/with_<name>.py`, and hands back dequantized weights. Word embeddings are rounded by
Kerf's own method on both sides, so that the linear layers alone make the difference.

    python benchmarks/peers.py [--samples 1151] [--bits 4 3 2] [--only NAME ...] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from kerf import load
from kerf.config import Calibration
from kerf.core.cache import meta, threads
from kerf.core.paths import root
from kerf.data import corpora
from kerf.models import architecture, registry
from kerf.models.families import encoder
from kerf.pipeline import build
from kerf.quantize.rounding import rtn
from kerf.workbench.interactive.ablation import LayerAblation

MODEL, GROUP, SENTENCES, GOAL = "minilm", 64, 400, 0.5
EMBEDDINGS = {
    4: 8,
    3: 4,
    2: 4,
}  # bits of the linear layers -> bits of the word embeddings, on both sides
QUANTIZE = {"method": "gptq", "group_size": GROUP, "clip": "hessian"}
CHAINS = {  # name -> steps for so many bits
    "gptq": lambda bits: [{"quantize": {**QUANTIZE, "bits": bits, "embeddings": EMBEDDINGS[bits]}}],
    "reconstruct": lambda bits: [*CHAINS["gptq"](bits), {"reconstruct": {}}],
}


def run_kerf(steps: list[dict], calibration: Calibration) -> tuple[object, dict]:
    """The model that a chain makes, and its figures; seconds are of every link."""
    links = [
        meta(build(MODEL, steps[:count], calibration))["result"]
        for count in range(1, len(steps) + 1)
    ]
    seconds = sum(link["compress_seconds"] for link in links)
    figures = {
        "linear_bits": links[-1]["linear_bits"],
        "seconds": seconds,
        "version": "",
        "settings": steps,
    }
    return load(build(MODEL, steps, calibration)), figures


def ask_peer(
    name: str, python: Path, calibration: Calibration, more: dict, script: str = "with"
) -> tuple[dict, dict]:
    """Tensors by name, and figures, from the peer's script in the peer's environment; more: what is asked of this one."""
    request = {
        "model": str(registry.resolve(MODEL)),
        "texts": corpora.calibration_sentences(
            calibration.texts, calibration.samples, calibration.seed
        ),
        "max_length": calibration.max_length,
        "batch_size": encoder.BATCH_SIZE,
        **more,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads())}
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "request.json")
        asked.write_text(json.dumps(request))
        command = [python, root() / "benchmarks" / "peers" / f"{script}_{name}.py", asked, folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(
                f"{name} ({more}) ended with {done.returncode}:\n{done.stderr[-2000:]}"
            )
        return load_file(Path(folder, "weights.safetensors")), json.loads(
            Path(folder, "figures.json").read_text()
        )


def run_peer(name: str, python: Path, bits: int, calibration: Calibration) -> tuple[object, dict]:
    """The float model with the peer's linear layers and Kerf's word embeddings, and the peer's figures."""
    weights, figures = ask_peer(name, python, calibration, {"bits": bits, "group_size": GROUP})
    opened = registry.open_model(MODEL)
    net = registry.network(opened)
    for embedding in architecture.embeddings(net).values():
        weight = embedding.weight.data
        weight.copy_(rtn(weight, EMBEDDINGS[bits], weight.shape[1], clip=True).dequantize())
    if unknown := net.load_state_dict(weights, strict=False).unexpected_keys:
        raise SystemExit(f"{name} gave weights of no layer: {unknown}")
    return opened, figures


def measure(
    calibration: Calibration, environments: Path, widths: list[int], only: list[str]
) -> list[dict]:
    """Rows of the table, printed as they come; only: names of what is measured, none for all."""
    yardstick, rows = LayerAblation(MODEL, "news", SENTENCES), []
    print(
        f"{'bits':>4} {'who':20} {'linear_bits':>11} {'cosine (95 %)':>25} {'1 - cosine':>10} {'seconds':>8}"
    )

    def show(bits, who, opened, figures):
        cosine, low, high = yardstick.measure(opened)
        row = {"bits": bits, "who": who, "cosine": cosine, "low": low, "high": high, **figures}
        rows.append(row)
        interval = f"{row['cosine']:.4f} ({row['low']:.4f} to {row['high']:.4f})"
        print(
            f"{bits:4} {who:20} {row['linear_bits']:11.3f} {interval:>25} "
            f"{1 - row['cosine']:10.4f} {row['seconds']:8.1f}",
            flush=True,
        )

    for bits in widths:
        for name, chain in CHAINS.items():
            if not only or name in only:
                show(bits, f"kerf {name}", *run_kerf(chain(bits), calibration))
        for script in sorted((root() / "benchmarks" / "peers").glob("with_*.py")):
            name = script.stem.removeprefix("with_")
            python = environments / name / "bin" / "python"
            if only and name not in only:
                continue
            if python.exists():
                show(bits, name, *run_peer(name, python, bits, calibration))
            else:
                print(f"{bits:4} {name:20} has no environment: make peers")
    return rows


def compare(rows: list[dict]) -> None:
    """Print, for each number of bits, what Kerf loses over what the best peer loses."""
    for bits in EMBEDDINGS:
        sides = [
            [r for r in rows if r["bits"] == bits and (r["who"] in _ours()) == ours]
            for ours in (True, False)
        ]
        if all(sides):
            kerf, peer = (max(side, key=lambda row: row["cosine"]) for side in sides)
            ratio = (1 - kerf["cosine"]) / (1 - peer["cosine"])
            print(
                f"{bits} bits: {kerf['who']} loses {ratio:.2f} of what {peer['who']} loses, goal at most {GOAL}"
            )


def _ours() -> set[str]:
    return {f"kerf {name}" for name in CHAINS}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1151, help="calibration sentences of news")
    parser.add_argument("--bits", type=int, nargs="+", choices=EMBEDDINGS, default=[*EMBEDDINGS])
    parser.add_argument(
        "--only", nargs="+", default=[], help="gptq, reconstruct (Kerf's) or names of peers"
    )
    parser.add_argument(
        "--environments", type=Path, default=root() / ".venv-peers", help="a folder for each peer"
    )
    parser.add_argument("--json", type=Path, help="add all rows to those there")
    arguments = parser.parse_args()
    known = (
        json.loads(arguments.json.read_text())
        if arguments.json and arguments.json.is_file()
        else []
    )
    rows = known + measure(
        Calibration(samples=arguments.samples),
        arguments.environments,
        arguments.bits,
        arguments.only,
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    compare(rows)


if __name__ == "__main__":
    main()
