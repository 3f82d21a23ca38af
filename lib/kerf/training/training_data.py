"""What is learned from and judged by, for each kind of model: the calibration sample, and splices of it.

The float model has an answer to any text, so a splice (the beginning of one text joined to the end of
another) teaches as well as a text that somebody wrote.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kerf.config import Calibration
from kerf.data import corpora
from kerf.models import architecture, families
from kerf.models.families import causal, encoder

TOKENS = 512  # of a batch


@dataclass(frozen=True)
class TrainingData:
    """fit, judge: batches to learn from, and of text held back.

    ends(states, wanted, batch): loss of the last block's states, by what the model makes of them.
    loss(opened): what an opened candidate loses on `judge`; `measure` is its name, `held` the texts in `judge`.
    """

    fit: list[dict]
    judge: list[dict]
    ends: Callable
    loss: Callable
    measure: str
    held: int


def gather(original, spec: Calibration, times: int) -> TrainingData:
    """Training data for learning towards the opened model `original`; times: texts for each of the sample."""
    generator = torch.Generator().manual_seed(spec.seed)
    return {encoder: _encoder, causal: _causal}[families.of_opened(original)](
        original, spec, times, generator
    )


def _encoder(original, spec, times, generator) -> TrainingData:
    from kerf.calibration.heldout import embed, mean_cosine

    sample, held = (
        corpora.calibration_sentences(spec.texts, spec.samples, spec.seed),
        corpora.held_back(spec.texts, spec.samples, spec.seed),
    )
    fit = batched(
        splices(encoder.token_ids(original, sample, spec.max_length), times, generator), original
    )
    judge = batched(encoder.token_ids(original, held, spec.max_length), original)
    aim = embed(original, judge)

    def ends(states, wanted, batch):
        found, aim = (
            encoder.pool(original, each, batch["attention_mask"]) for each in (states, wanted)
        )
        return (1 - torch.nn.functional.cosine_similarity(found, aim)).mean()

    return TrainingData(
        fit,
        judge,
        ends,
        lambda opened: 1 - mean_cosine(embed(opened, judge), aim),
        "1 - mean cosine",
        len(held),
    )


def _causal(original, spec, times, generator) -> TrainingData:
    from kerf.evaluate.likelihood import against, keep

    fit = [row for batch in causal.batches(original, spec) for row in batch["input_ids"].tolist()]
    judge = causal.held_batches(original, spec)
    targets = [batch["input_ids"][:, 1:].flatten() for batch in judge]

    @torch.no_grad()
    def logits(opened, batch):
        return opened(**{**batch, "logits_to_keep": 0}).logits[:, :-1].flatten(0, 1)

    kept = [
        keep(logits(original, batch), wanted) for batch, wanted in zip(judge, targets, strict=True)
    ]

    def loss(opened):
        sides = zip(kept, judge, targets, strict=True)
        return float(
            torch.cat(
                [against(own, logits(opened, batch), wanted)["kl"] for own, batch, wanted in sides]
            ).mean()
        )

    def ends(states, wanted, batch):
        with torch.no_grad():
            aim = architecture.after_blocks(original, batch, wanted).log_softmax(-1)
        found = architecture.after_blocks(original, batch, states).log_softmax(-1)
        return (
            torch.nn.functional.kl_div(found, aim, log_target=True, reduction="none").sum(-1).mean()
        )

    rows = torch.tensor(spliced(fit, times, generator))
    extra = {key: judge[0][key] for key in ("use_cache", "logits_to_keep")}
    pieces = rows.split(max(1, TOKENS // rows.shape[1]))
    fit = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra} for ids in pieces]
    return TrainingData(
        fit,
        judge,
        ends,
        loss,
        "mean KL divergence",
        sum(len(batch["input_ids"]) for batch in judge),
    )


def splices(sequences: list[list[int]], times: int, generator: torch.Generator) -> list[list[int]]:
    """The sequences, and `times` - 1 more for each: its beginning joined to the end of another one."""
    result = list(sequences)
    for _ in range(times - 1):
        for first in sequences:
            second = sequences[int(torch.randint(len(sequences), (), generator=generator))]
            cut = [
                int(torch.randint(1, len(each), (), generator=generator))
                for each in (first, second)
            ]
            joined = first[: cut[0]] + second[cut[1] :]
            result.append(joined if 4 < len(joined) <= max(len(first), len(second)) else first)
    return result


def spliced(chunks: list[list[int]], times: int, generator: torch.Generator) -> list[list[int]]:
    """Like `splices`, for chunks of one length, which they keep."""
    result = list(chunks)
    for _ in range(times - 1):
        for first in chunks:
            second = chunks[int(torch.randint(len(chunks), (), generator=generator))]
            cut = int(torch.randint(1, len(first), (), generator=generator))
            result.append(first[:cut] + second[cut:])
    return result


def batched(sequences: list[list[int]], opened) -> list[dict]:
    """Batches of about TOKENS tokens, sequences of like length together."""
    batches, current, padding = [], [], opened.tokenizer.pad_token_id
    for sequence in sorted(sequences, key=len):
        if current and (len(current) + 1) * len(sequence) > TOKENS:
            batches.append(_pad(current, padding))
            current = []
        current.append(sequence)
    return [*batches, _pad(current, padding)]


def _pad(sequences, padding):
    width = max(map(len, sequences))
    ids = [sequence + [padding] * (width - len(sequence)) for sequence in sequences]
    mask = [[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
