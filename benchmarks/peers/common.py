"""What the scripts of all peers share: the request, the model with its calibration batches, and the answer.

A request (JSON) names model (a directory), texts, max_length and batch_size, and what else the peer is asked: bits and group_size. The answer is
weights.safetensors, the dequantized float32 weight of every linear layer, and figures.json. Nothing of Kerf
is imported, since a peer's environment does not have it.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

SCALE_BITS = 16  # of a stored scale: peers write float16 or bfloat16, whatever they compute in


class Job:
    """A request, with its model opened in float32 and its texts tokenized, shortest first."""

    def __init__(self):
        request, self.out = Path(sys.argv[1]), Path(sys.argv[2])
        self.asked = asked = json.loads(request.read_text())
        self.bits, self.group_size = asked.get("bits"), asked.get("group_size")
        self.net = AutoModel.from_pretrained(
            asked["model"], dtype=torch.float32, local_files_only=True, trust_remote_code=False
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(
            asked["model"], local_files_only=True, trust_remote_code=False
        )
        self.linears = {
            name: m for name, m in self.net.named_modules() if isinstance(m, torch.nn.Linear)
        }
        self.clock = time.perf_counter()
        texts, size = sorted(asked["texts"], key=len), asked["batch_size"]
        options = {
            "padding": True,
            "truncation": True,
            "max_length": asked["max_length"],
            "return_tensors": "pt",
        }
        self.batches = [
            dict(self.tokenizer(texts[i : i + size], **options)) for i in range(0, len(texts), size)
        ]

    def answer(
        self, peer: str, weights: dict[str, torch.Tensor], stored_bits: int, settings: dict
    ) -> None:
        """Write weights (name of a linear layer -> dequantized) and figures; stored_bits is of all layers."""
        if missing := self.linears.keys() - weights.keys():
            raise SystemExit(f"{peer} left out {sorted(missing)}")
        figures = self.figures(peer, settings) | {
            "linear_bits": stored_bits / sum(weight.numel() for weight in weights.values())
        }
        tensors = {
            f"{name}.weight": weight.detach().float().contiguous()
            for name, weight in weights.items()
        }
        save_file(tensors, self.out / "weights.safetensors")
        (self.out / "figures.json").write_text(json.dumps(figures))

    def figures(self, peer: str, settings: dict) -> dict:
        """Who it was, how it was set, and seconds since the texts were there."""
        return {
            "peer": peer,
            "version": version(peer),
            "settings": settings,
            "seconds": time.perf_counter() - self.clock,
        }
