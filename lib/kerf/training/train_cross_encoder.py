"""A small reranker, trained here: no package ships the weights of one, so that Kerf makes its own out of an encoder.

The encoder becomes a cross-encoder with a new head of one score, and learns on inverse-cloze pairs of the bundled text
(Lee, Chang and Toutanova 2019, arXiv:1906.00300): which passage goes on where the query stops? Softmax cross-entropy over a
query's own passage and a few others, at first mostly of chance, then those that the encoder itself takes for the nearest.
Word embeddings stay the encoder's. Only documents of the calibration part are seen. It is a stand-in to compress and to
measure, minutes of training on a CPU, and no rival of rerankers that saw millions of real questions.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from kerf.config import Parameters
from kerf.core.cache import artifact, threads
from kerf.core.digests import sha256
from kerf.core.errors import refuse
from kerf.data import corpora, segmentation
from kerf.evaluate import first_stage
from kerf.models.families.opening import from_folder

NEAREST = 20  # passages that hard ones are drawn from
MAX_LENGTH = 128  # tokens of a pair


class Training(Parameters):
    """How a reranker is trained. others: passages beside a query's own; easy: fraction of steps with a single hard negative;
    learning_rate: the highest, after a warm-up of a tenth of the steps, from which it decays linearly to zero.
    """

    steps: Annotated[
        int, Field(ge=1, le=100_000, description="a whole number from 1 to 100000")
    ] = 160
    queries: Annotated[
        int, Field(ge=1, le=10_000, description="a whole number from 1 to 10000, of a step")
    ] = 8
    others: Annotated[int, Field(ge=1, le=NEAREST, description=f"1 to {NEAREST} passages")] = 3
    easy: Annotated[float, Field(ge=0, le=1, description="a share from 0 to 1")] = 0.3
    learning_rate: Annotated[float, Field(gt=0, lt=1, description="more than 0, less than 1")] = (
        2e-4
    )
    seed: Annotated[
        int, Field(ge=0, le=2**32 - 1, description=f"a whole number from 0 to {2**32 - 1}")
    ] = 0


def trained(encoder: Path, spec: Training | None = None) -> Path:
    """Directory of the reranker that `encoder`, a directory, becomes; trained once. meta.json holds the loss of every step.

    Raises InputError for more steps than the text has queries for, and for so few that there are no `others`.
    """
    spec = spec or Training()
    files = sorted(path for path in encoder.rglob("*") if path.suffix in (".json", ".safetensors"))
    key = {
        "encoder": [sha256(path) for path in files],
        "training": spec.model_dump(),
        "texts": [corpora.digest(name) for name in corpora.NAMES],
    }
    code = [
        Path(__file__),
        Path(first_stage.__file__),
        Path(corpora.__file__),
        Path(segmentation.__file__),
    ]
    return artifact(
        "reranker", key, lambda folder: _make(folder, encoder, spec), code, anywhere=True
    )


def stretches() -> list[tuple[str, str]]:
    """Query and passage of every stretch of the calibration parts that shares no 12 words in a row with an evaluation part."""
    evaluated = [
        document for name in corpora.NAMES for document in corpora.documents(name, "evaluation")
    ]
    rows = {
        f"{query} {passage}": (query, passage)
        for name in corpora.NAMES
        for query, passage, _ in corpora.stretches(name, "calibration")
    }
    return [rows[text] for text in corpora.without_overlap(list(rows), evaluated)]


def _make(folder: Path, encoder: Path, spec: Training) -> dict:
    rows = stretches()
    least, most = spec.others // spec.queries + 1, len(rows) // spec.queries
    if not least <= spec.steps <= most:
        raise refuse(
            "steps", spec.steps, f"{least} to {most}: {len(rows)} pairs, {spec.queries} a step"
        )
    print(f"training a reranker, once: {spec.steps} steps", file=sys.stderr)
    order = np.random.default_rng(spec.seed).permutation(len(rows))[: spec.steps * spec.queries]
    queries, passages = zip(*(rows[index] for index in order), strict=True)
    near = first_stage.others(encoder, queries, passages, min(NEAREST, len(queries) - 1))
    opened = _with_head(encoder, spec.seed)
    losses = _train(opened, spec, queries, passages, near)
    opened.save_pretrained(str(folder), create_model_card=False)
    for name in ("LICENSE", "NOTICE"):  # of the weights that it began with
        if (encoder / name).is_file():
            (folder / name).write_bytes((encoder / name).read_bytes())
    return {"pairs": len(queries), "losses": losses}


def _with_head(encoder: Path, seed: int):
    """The encoder as a CrossEncoder in float32, whose score is the logit of a head of random weights."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(threads())
    logging.disable(logging.WARNING)  # of a head that is new
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return from_folder(
                "CrossEncoder",
                encoder,
                num_labels=1,
                activation_fn=torch.nn.Identity(),
                device="cpu",
                model_kwargs={"use_safetensors": True, "dtype": "float32"},
            ).eval()
    finally:
        logging.disable(logging.NOTSET)


def _train(opened, spec: Training, queries, passages, near: np.ndarray) -> list[float]:
    """Train in place; returns the loss of every step. near: (queries, nearest) numbers of passages, as `shortlist.others` gives them.

    Without dropout: every query is seen once.
    """
    import torch

    net, random = opened.model, np.random.default_rng(spec.seed)
    net.get_input_embeddings().weight.requires_grad = False
    learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=spec.learning_rate)
    warm = max(1, spec.steps // 10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, (spec.steps - step) / max(1, spec.steps - warm)),
    )
    options = {
        "padding": True,
        "truncation": True,
        "max_length": MAX_LENGTH,
        "return_tensors": "pt",
    }
    losses = []
    for step in range(spec.steps):
        hard = 1 if step < spec.easy * spec.steps else spec.others
        pairs = []
        for own in range(step * spec.queries, (step + 1) * spec.queries):
            chosen = [
                own,
                *random.choice(near[own], hard, replace=False),
                *_chance(random, len(queries), own, spec.others - hard),
            ]
            pairs += [(queries[own], passages[index]) for index in chosen]
        scores = net(
            **opened.tokenizer(*map(list, zip(*pairs, strict=True)), **options)
        ).logits.view(spec.queries, -1)
        loss = torch.nn.functional.cross_entropy(
            scores, torch.zeros(spec.queries, dtype=torch.long)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    return losses


def _chance(random, count: int, own: int, wanted: int) -> np.ndarray:
    """`wanted` numbers below `count`, none of them `own`."""
    return (own + random.integers(1, count, wanted)) % count
