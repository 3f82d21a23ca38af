"""Training and held-out text of reconstruction, for each kind of model.

The training text is the calibration sample with augmented copies of it. The float model has an output for any text, so
the beginning of one text joined to the end of another is as useful as a text that somebody wrote.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div
from torch.nn.utils.rnn import pad_sequence

from kerf.calibration.heldout import embed, mean_cosine
from kerf.config import Calibration
from kerf.data import corpora
from kerf.evaluate.likelihood import compare_to_baseline, top_log_probabilities
from kerf.models import architecture, families
from kerf.models.families import causal, encoder

TOKENS = 512  # of a batch


@dataclass(frozen=True)
class TrainingData:
    """fit, held_out: tokenized batches to train on and to measure on; held: number of texts in `held_out`.

    output_loss(states, target, batch): output-level loss of the last block's states against the float model's.
    loss(opened): the loss of an opened candidate on `held_out`; measure: what this loss is called.
    """

    fit: list[dict]
    held_out: list[dict]
    output_loss: Callable[[Tensor, Tensor, dict], Tensor]
    loss: Callable[[Any], float]
    measure: str
    held: int


def gather(original: Any, spec: Calibration, times: int) -> TrainingData:
    """Training data for reconstruction towards the opened model `original`; times: augmentation factor."""
    make = _causal if families.of_opened(original) is causal else _encoder
    return make(original, spec, times)


def _encoder(original: Any, spec: Calibration, times: int) -> TrainingData:
    sample = corpora.calibration_sentences(spec.texts, spec.samples, spec.seed)
    held = corpora.held_back(spec.texts, spec.samples, spec.seed)
    sequences, held_sequences = (
        encoder.token_ids(original, sentences, spec.max_length) for sentences in (sample, held)
    )
    fit = _batched(spliced(sequences, times, spec.seed), original)
    held_out = _batched(held_sequences, original)
    reference = embed(original, held_out)

    def output_loss(states: Tensor, target: Tensor, batch: dict) -> Tensor:
        pooled, wanted = (
            encoder.pool(original, hidden, batch["attention_mask"])[:, : original.truncate_dim]
            for hidden in (states, target)
        )
        return (1 - cosine_similarity(pooled, wanted)).mean()

    def loss(opened: Any) -> float:
        return 1 - mean_cosine(embed(opened, held_out), reference)

    return TrainingData(fit, held_out, output_loss, loss, "1 - mean cosine", len(held))


def _causal(original: Any, spec: Calibration, times: int) -> TrainingData:
    batches = causal.batches(original, spec)
    chunks = [row for batch in batches for row in batch["input_ids"].tolist()]
    held_out = causal.held_batches(original, spec)
    targets = [batch["input_ids"][:, 1:].flatten() for batch in held_out]

    @torch.no_grad()
    def logits(opened: Any, batch: dict) -> Tensor:
        return opened(**{**batch, "logits_to_keep": 0}).logits[:, :-1].flatten(0, 1)

    pairs = list(zip(held_out, targets, strict=True))
    baseline = [top_log_probabilities(logits(original, batch), target) for batch, target in pairs]

    def loss(opened: Any) -> float:
        divergences = [
            compare_to_baseline(reference, logits(opened, batch), target)["kl"]
            for reference, (batch, target) in zip(baseline, pairs, strict=True)
        ]
        return float(torch.cat(divergences).mean())

    def output_loss(states: Tensor, target: Tensor, batch: dict) -> Tensor:
        with torch.no_grad():
            reference = architecture.after_blocks(original, batch, target).log_softmax(-1)
        logp = architecture.after_blocks(original, batch, states).log_softmax(-1)
        return kl_div(logp, reference, log_target=True, reduction="none").sum(-1).mean()

    device = held_out[0]["input_ids"].device
    rows = torch.tensor(spliced(chunks, times, spec.seed, aligned=True), device=device)
    extra = {key: held_out[0][key] for key in ("use_cache", "logits_to_keep")}
    fit = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}
        for ids in rows.split(max(1, TOKENS // rows.shape[1]))
    ]
    held = sum(len(batch["input_ids"]) for batch in held_out)
    return TrainingData(fit, held_out, output_loss, loss, "mean KL divergence", held)


def spliced(
    sequences: list[list[int]], times: int, seed: int, aligned: bool = False
) -> list[list[int]]:
    """The token sequences, and `times` - 1 splices of each: its beginning joined to the end of a random other.

    aligned: both are cut at the same place, so that chunks of one length keep it.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    result = list(sequences)
    for first in sequences * (times - 1):
        second = sequences[draw(0, len(sequences))]
        end = draw(1, len(first))
        start = end if aligned else draw(1, len(second))
        joined = first[:end] + second[start:]
        result.append(joined if 4 < len(joined) <= max(len(first), len(second)) else first)
    return result


def _batched(sequences: list[list[int]], opened: Any) -> list[dict]:
    """Padded batches of about TOKENS tokens, sequences of similar length together."""
    batches: list[list[list[int]]] = [[]]
    for sequence in sorted(sequences, key=len):
        if batches[-1] and (len(batches[-1]) + 1) * len(sequence) > TOKENS:
            batches.append([])
        batches[-1].append(sequence)
    padding, device = opened.tokenizer.pad_token_id, opened.device
    padded = []
    for batch in batches:
        ids = [torch.tensor(sequence, device=device) for sequence in batch]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        padded_ids = pad_sequence(ids, batch_first=True, padding_value=padding)
        padded.append({"input_ids": padded_ids, "attention_mask": mask})
    return padded
