"""Compare a model's outputs with a reference on held-out batches, in this process."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kerf.config import Calibration
from kerf.data import corpora
from kerf.models import architecture, families
from kerf.models.families import causal, encoder
from kerf.models.hooks import attached, on_outputs

SENTENCES, CHUNKS = 32, 1  # of held-out text for the cost of one layer


@torch.no_grad()
def embed(opened: Any, batches: list[dict]) -> Tensor:
    """Embeddings (texts, features) of tokenized batches, rows of length one."""
    rows = torch.cat([encoder.forward(opened, batch) for batch in batches])
    return F.normalize(rows[:, : opened.truncate_dim], dim=-1)


def mean_cosine(embeddings: Tensor, reference: Tensor) -> float:
    """Mean cosine of rows of length one."""
    return float((embeddings * reference).sum(1).mean())


class Sentences:
    """A few sentences outside the calibration sample, and an encoder's embeddings of them at construction."""

    def __init__(self, opened: Any, spec: Calibration):
        """Raises InputError when the calibration text leaves none."""
        sentences = corpora.held_back(spec.texts, spec.samples, spec.seed)[:SENTENCES]
        self.opened, self.count = opened, len(sentences)
        self.batches = encoder.prompted(opened, sentences, spec.max_length)
        self.reference = embed(opened, self.batches)

    def loss(self, layer: str) -> float:
        """1 - mean cosine of the model's embeddings now to those at construction."""
        return 1 - mean_cosine(embed(self.opened, self.batches), self.reference)


class Chunks:
    """A chunk outside the calibration sample, and a language model's log-probabilities of it at construction."""

    @torch.no_grad()
    def __init__(self, opened: Any, spec: Calibration):
        """Raises InputError when the calibration text leaves none."""
        batch = causal.held_batches(opened, spec)[0]
        self.net, self.count = opened, CHUNKS
        self.states: dict[str, Tensor] = {}
        names = ("input_ids", "attention_mask")
        self.batch = {"use_cache": False, **{name: batch[name][:CHUNKS] for name in names}}

        def remember(name: str, _: Any, output: Any) -> None:
            self.states[name] = output[0] if isinstance(output, tuple) else output

        with attached(on_outputs(architecture.blocks(opened), remember)):
            self.reference = opened(**self.batch).logits.log_softmax(-1)

    @torch.no_grad()
    def loss(self, layer: str) -> float:
        """Mean KL divergence (nats) from the reference, with `layer` the first one that changed: earlier blocks are not run again."""
        blocks = list(self.states)
        first = next((n for n, name in enumerate(blocks) if layer.startswith(f"{name}.")), 0)
        if first:
            hidden = self.states[blocks[first - 1]]
            logits = architecture.after_blocks(self.net, self.batch, hidden, first)
        else:
            logits = self.net(**self.batch).logits
        logp = logits.log_softmax(-1)
        divergence = F.kl_div(logp, self.reference, log_target=True, reduction="none")
        return float(divergence.sum(-1).mean())


def held(opened: Any, spec: Calibration) -> Sentences | Chunks:
    """Held-out text for a model of that family."""
    return Chunks(opened, spec) if families.of_opened(opened) is causal else Sentences(opened, spec)
