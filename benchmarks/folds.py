"""What folding AWQ's scales or a Hadamard rotation into SmolLM2 before GPTQ buys, at 4, 3 and 2 bits, group 64.

Either changes the weights and not the function: AWQ (Lin et al. 2023, arXiv:2306.00978) multiplies the columns
that matter and divides what feeds them; a rotation of the residual stream (QuaRot, Ashkboos et al. 2024,
arXiv:2404.00456) spreads outliers over all channels, and takes the tie between embedding and head with it.
Folded copies go through the same GPTQ on the same tokens; loss is on chunks of 512 tokens of wiki, against the
model as it came.

    python benchmarks/folds.py [--bits 4 3 2] [--contexts 64]
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from causal_peers import GROUP, MODEL, Judge, lost
from scipy.linalg import hadamard

import kerf
from kerf.calibration import activations
from kerf.config import Calibration
from kerf.core.cache import meta
from kerf.models import registry
from kerf.pipeline import build
from kerf.quantize.rounding import rtn

SPEC = Calibration(samples=32, max_length=256)
SHARES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)  # exponents of the inputs' magnitude that are tried


def scales(weights: list[torch.Tensor], H: torch.Tensor, bits: int) -> torch.Tensor:
    """AWQ's factor for each column (columns,) of layers that share an input with second moments H."""

    def error(W, s):
        E = rtn(W * s, bits, GROUP, importance=H.diagonal() / s**2, clip=True).dequantize() / s - W
        return float(((E @ H) * E).sum())

    magnitude, found = H.diagonal().clamp(min=1e-12).sqrt(), []
    for share in SHARES:
        s = magnitude**share
        s = (s / (s.max() * s.min()).sqrt()).clamp(1e-3, 1e3)
        found.append((sum(error(W, s) for W in weights), s))
    return min(found, key=lambda pair: pair[0])[1]


def awq(net, bits: int) -> None:
    """Fold scales into every input that comes from a norm or from another linear layer's rows."""
    groups, statistics = activations.read(activations.calibrate(MODEL, SPEC))
    names = {module: name for name, module in net.named_modules()}

    def fold(source, layers):
        group = next(group for group in groups if names[layers[0]] in group)
        s = scales([layer.weight for layer in layers], statistics[f"second/{group[0]}"], bits)
        source.weight.div_(s if source.weight.dim() == 1 else s[:, None])
        for layer in layers:
            layer.weight.mul_(s)

    for block in net.model.layers:
        attention, mlp = block.self_attn, block.mlp
        fold(block.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj])
        fold(block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])
        fold(mlp.up_proj, [mlp.down_proj])


def rotation(net, bits: int) -> None:
    """Rotate the residual stream: norms' weights go into the layers that read it, which turn, and those that write turn back."""
    width, drawn = net.config.hidden_size, np.random.default_rng(0)
    power = (
        width & -width
    )  # the largest power of two that divides the width; the rest is a random rotation
    rest, _ = np.linalg.qr(drawn.standard_normal((width // power, width // power)))
    Q = torch.from_numpy(
        np.kron(hadamard(power) / power**0.5, rest) * drawn.choice([-1.0, 1.0], (width, 1))
    )

    def read(layer, norm):
        layer.weight.copy_(((layer.weight * norm.weight).double() @ Q).float())

    for block in net.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            read(layer, block.input_layernorm)
        for layer in (mlp.gate_proj, mlp.up_proj):
            read(layer, block.post_attention_layernorm)
        for layer in (attention.o_proj, mlp.down_proj):
            layer.weight.copy_((Q.T @ layer.weight.double()).float())
        block.input_layernorm.weight.fill_(1)
        block.post_attention_layernorm.weight.fill_(1)
    words = net.model.embed_tokens.weight
    net.lm_head.weight = torch.nn.Parameter(words.clone())
    read(net.lm_head, net.model.norm)
    words.copy_((words.double() @ Q).float())
    net.model.norm.weight.fill_(1)
    net.config.tie_word_embeddings = False


@torch.no_grad()
def folded(fold, bits: int, folder: Path) -> str:
    """Directory of a copy of the model with `fold` applied; the same function, or an error."""
    net, ids = registry.open_model(MODEL), torch.arange(1000, 1064)[None]
    before = net(ids).logits
    fold(net, bits)
    apart = float((net(ids).logits - before).abs().max() / before.abs().max())
    assert apart < 1e-3, f"{fold.__name__} changed the function by {apart:.1e}"
    net.save_pretrained(folder)
    for path in registry.resolve(MODEL).iterdir():
        if path.suffix in (".json", ".txt") and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    return str(folder)


def main() -> None:
    """Print a row for each fold and width."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--contexts", type=int, default=64, help="chunks of wiki that are measured")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        judge = Judge(asked.contexts, Path(scratch, "answers"))
        for bits in asked.bits:
            plain = None
            for fold in (None, awq, rotation):
                name = fold.__name__ if fold else "as it is"
                model = folded(fold, bits, Path(scratch, f"{name}-{bits}")) if fold else MODEL
                made = build(
                    model,
                    [
                        {
                            "quantize": {
                                "method": "gptq",
                                "bits": bits,
                                "group_size": GROUP,
                                "clip": "hessian",
                            }
                        }
                    ],
                    SPEC,
                )
                found = judge.score(kerf.load(made))
                plain = found if plain is None else plain
                kl, low, high = judge.mean(found["kl"] - plain["kl"])
                print(
                    f"{bits} bits, {name:9} {meta(made)['result']['bytes_on_disk'] / 1e6:6.1f} MB, {lost(judge, found)}, "
                    f"less that of the model as it is {kl:+.4f} ({low:+.4f} to {high:+.4f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
