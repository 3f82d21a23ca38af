"""Compare a model's outputs with a reference on held-out batches, in this process."""

import torch

from kerf.config import Calibration
from kerf.data import corpora
from kerf.models import architecture, families
from kerf.models.families import causal, encoder
from kerf.models.hooks import attached, on_outputs

SENTENCES, CHUNKS = 32, 1  # that are asked about a layer alone


@torch.no_grad()
def embed(opened, batches: list[dict]) -> torch.Tensor:
    """Embeddings (texts, features) of tokenized batches, rows of length one."""
    return torch.nn.functional.normalize(
        torch.cat([encoder.forward(opened, batch) for batch in batches]), dim=-1
    )


def mean_cosine(embeddings: torch.Tensor, aim: torch.Tensor) -> float:
    """Mean cosine of rows of length one."""
    return float((embeddings * aim).sum(1).mean())


class Sentences:
    """A few sentences outside the calibration sample, and their embeddings by an encoder as it is now."""

    def __init__(self, opened, spec: Calibration):
        """Raises InputError when the calibration text leaves none."""
        held = corpora.held_back(spec.texts, spec.samples, spec.seed)[:SENTENCES]
        self.opened, self.count, self.batches = (
            opened,
            len(held),
            encoder.tokenized(opened, held, encoder.BATCH_SIZE, spec.max_length),
        )
        self.aim = embed(opened, self.batches)

    def lost(self, _) -> float:
        """1 - mean cosine to what it was."""
        return 1 - mean_cosine(embed(self.opened, self.batches), self.aim)


class Chunks:
    """A chunk outside the calibration sample, and what a language model as it is now makes of it."""

    @torch.no_grad()
    def __init__(self, opened, spec: Calibration):
        """Raises InputError when the calibration text leaves none."""
        whole = causal.held_batches(opened, spec)[0]
        self.net, self.count, self.states = opened, CHUNKS, {}
        self.batch = {
            "use_cache": False,
            **{key: whole[key][:CHUNKS] for key in ("input_ids", "attention_mask")},
        }

        def look(name, _, output):
            self.states[name] = output[0] if isinstance(output, tuple) else output

        with attached(on_outputs(architecture.blocks(opened), look)):
            self.aim = opened(**self.batch).logits.log_softmax(-1)

    @torch.no_grad()
    def lost(self, layer: str) -> float:
        """Mean KL divergence (nats) from what it was, where nothing before `layer` has changed: blocks before it are not run."""
        place = next(
            (number for number, name in enumerate(self.states) if layer.startswith(f"{name}.")), 0
        )
        if place:
            logits = architecture.after_blocks(
                self.net, self.batch, list(self.states.values())[place - 1], place
            )
        else:
            logits = self.net(**self.batch).logits
        return float(
            torch.nn.functional.kl_div(
                logits.log_softmax(-1), self.aim, log_target=True, reduction="none"
            )
            .sum(-1)
            .mean()
        )


def held(opened, spec: Calibration) -> Sentences | Chunks:
    """Text outside the calibration sample for a model of that kind."""
    return Chunks(opened, spec) if families.of_opened(opened) is causal else Sentences(opened, spec)
