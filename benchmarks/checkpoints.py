"""Kerf's GPTQ checkpoints in other libraries, and theirs in Kerf: the same weights, to the last bit?

SmolLM2 at 8, 4, 3 and 2 bits in both conventions for zero points is exported and read by every library whose
environment is there (`make peers`), each with its own code. Compared are the dequantized weights of every
layer, and the logits of one text; GPTQModel computes in float16, so what float16 does to Kerf's own model stands
beside its logits. Then GPTQModel quantizes, and Kerf reads what it saved.

    python benchmarks/checkpoints.py [--environments DIR] [--bits 4]
"""

import argparse
import copy
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import kerf
from kerf import pipeline
from kerf.config import STEPS as KINDS
from kerf.config import Calibration, parse
from kerf.core.paths import root
from kerf.data import corpora
from kerf.formats import gptq_checkpoint, imported
from kerf.models import registry
from kerf.models.families import causal

MODEL, GROUP = "smollm2", 64
SPEC = Calibration(samples=16, max_length=128)
STEPS = {
    8: {"method": "rtn"},
    4: {"method": "rtn", "clip": "mse"},
    3: {"method": "rtn", "clip": "mse"},
    2: {"method": "rtn"},
}
READERS = ("gptqmodel", "autogptq")


def ask(python: Path, script: str, *arguments) -> None:
    """Run a peer's script, and show the end of what it said if it fails."""
    command = [python, root() / "benchmarks" / "peers" / script, *arguments]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=arguments[-1]
    )  # logs go there
    if done.returncode:
        raise SystemExit(f"{script} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def read_by(
    reader: str, python: Path, folder: Path, tokens: list[int], scratch: Path
) -> tuple[dict, torch.Tensor, dict]:
    """Weights, logits and figures of a checkpoint as another library reads it."""
    asked = scratch / "tokens.json"
    asked.write_text(json.dumps(tokens))
    ask(python, f"read_with_{reader}.py", folder, asked, scratch)
    figures = json.loads((scratch / "figures.json").read_text())
    return (
        load_file(scratch / "weights.safetensors"),
        load_file(scratch / "logits.safetensors")["logits"],
        figures,
    )


def compare(
    title: str, own, tokens: list[int], weights: dict, logits: torch.Tensor, figures: dict
) -> None:
    """Print how many of the layers are equal, and how far the logits are apart."""
    state = own.state_dict()
    equal = sum(torch.equal(state[name], weight) for name, weight in weights.items())
    furthest = max(float((state[name] - weight).abs().max()) for name, weight in weights.items())
    with torch.no_grad():
        ours, half = (
            model(torch.tensor([tokens])).logits[0].float()
            for model in (own, copy.deepcopy(own).half())
        )
    apart, rounding = (
        float((ours - other).abs().max() / ours.abs().max()) for other in (logits, half)
    )
    print(
        f"{title:34} {figures['peer']} {figures['version']}: {equal} of {len(weights)} layers equal (largest difference "
        f"{furthest:.1e}); logits differ by at most {apart:.1e} of the largest (Kerf's own in float16: {rounding:.1e})",
        flush=True,
    )


def main() -> None:
    """Run every width, convention and reader."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--environments", type=Path, default=root() / ".venv-peers", help="a folder for each peer"
    )
    parser.add_argument("--bits", type=int, choices=STEPS, help="only this width")
    arguments = parser.parse_args()
    reader = causal.tokenizer(registry.resolve(MODEL))
    tokens = reader(corpora.evaluation_documents("news")[0])["input_ids"][:64]
    pythons = {name: arguments.environments / name / "bin" / "python" for name in READERS}
    for bits in [arguments.bits] if arguments.bits else STEPS:
        step = {"bits": bits, "group_size": GROUP, "embeddings": 32, **STEPS[bits]}
        for symmetric in (False, True):
            made = pipeline.build(MODEL, [{"quantize": {**step, "symmetric": symmetric}}], SPEC)
            own = kerf.load(made)
            for form in gptq_checkpoint.FORMATS:
                with tempfile.TemporaryDirectory() as scratch:
                    folder = gptq_checkpoint.export(made, Path(scratch, "checkpoint"), form)
                    for name, python in pythons.items():
                        if python.exists() and not (
                            name == "autogptq" and form == "gptq_v2"
                        ):  # which it does not know
                            title = f"{bits} bits, {'' if symmetric else 'a'}symmetric, {form}"
                            compare(
                                title,
                                own,
                                tokens,
                                *read_by(name, python, folder, tokens, Path(scratch)),
                            )
    if imported.python().is_file():
        for bits in [arguments.bits] if arguments.bits else STEPS:
            step = {"method": "gptqmodel", "bits": bits, "group_size": GROUP, "embeddings": 32}
            own = kerf.load(pipeline.build(MODEL, [{"quantize": step}], SPEC))
            made = imported.folder_of(MODEL, parse(KINDS["quantize"], step, "step"), SPEC)
            with tempfile.TemporaryDirectory() as scratch:
                read = read_by("gptqmodel", imported.python(), made, tokens, Path(scratch))
                compare(f"{bits} bits, made by GPTQModel", own, tokens, *read)
    if not any(python.exists() for python in pythons.values()):
        print("no environment of another library: make peers")


if __name__ == "__main__":
    main()
