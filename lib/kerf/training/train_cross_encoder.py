"""Train the bundled reranker: no package ships one, so Kerf makes its own from the bundled encoder.

The encoder becomes a cross-encoder with a new one-score head and learns from inverse-cloze pairs of the bundled text
(Lee, Chang and Toutanova 2019, arXiv:1906.00300): which passage continues the query? The loss is softmax cross-entropy
over the query's own passage and a few negatives, mostly random at first, then hard negatives mined with the encoder.
Word embeddings are frozen. Only calibration documents are used. The model is a stand-in to compress and measure,
trained in minutes on a CPU; it does not compete with rerankers trained on millions of real questions.
"""

from __future__ import annotations

import logging
import random
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kerf.config import Parameters
from kerf.core.cache import artifact, threads
from kerf.core.digests import sha256
from kerf.core.errors import refuse
from kerf.data import corpora, segmentation
from kerf.data.overlap import without_overlap
from kerf.models.families import encoder as encoder_family
from kerf.models.families.opening import from_folder

if TYPE_CHECKING:
    from datasets import Dataset

TEXTS = ("news", "wiki")  # sources of the training text
NEAREST = 20  # passages from which hard negatives are drawn
ONE_HOT = 100.0  # label of the right passage: the loss takes the softmax of the labels


class Training(Parameters):
    """Hyperparameters of the reranker's training.

    others: negatives per query; easy: fraction of steps with a single hard negative, the others random;
    learning_rate: the peak, reached after a warm-up of a tenth of the steps and then decayed linearly to zero.
    """

    steps: int = Field(default=160, ge=1, le=100_000, description="a whole number from 1 to 100000")
    queries: int = Field(default=8, ge=1, le=10_000, description="1 to 10000 queries of a step")
    others: int = Field(default=3, ge=1, le=NEAREST, description=f"1 to {NEAREST} passages")
    easy: float = Field(default=0.3, ge=0, le=1, description="a share from 0 to 1")
    learning_rate: float = Field(default=2e-4, gt=0, lt=1, description="more than 0, less than 1")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description=f"a whole number from 0 to {2**32 - 1}"
    )


def trained(encoder: Path, spec: Training | None = None) -> Path:
    """Folder of the reranker trained from `encoder` (a folder); cached. meta.json holds the loss of every step.

    Raises InputError for more steps than there are queries for, or too few queries to draw `others` from.
    """
    spec = spec or Training()
    files = sorted(path for path in encoder.rglob("*") if path.suffix in (".json", ".safetensors"))
    key = {
        "encoder": [sha256(path) for path in files],
        "training": spec.model_dump(),
        "texts": [corpora.digest(name) for name in TEXTS],
    }
    code = [Path(file) for file in (__file__, corpora.__file__, segmentation.__file__)]

    def make(folder: Path) -> dict:
        return _make(folder, encoder, spec)

    return artifact("reranker", key, make, code, anywhere=True)


def training_pairs() -> list[tuple[str, str]]:
    """(query, passage) pairs of the calibration parts that share no 12 consecutive words with an evaluation part."""
    evaluated = [document for name in TEXTS for document in corpora.documents(name, "evaluation")]
    rows = {
        f"{query} {passage}": (query, passage)
        for name in TEXTS
        for query, passage, _ in corpora.query_passage_pairs(name, "calibration")
    }
    return [rows[text] for text in without_overlap(list(rows), evaluated)]


def _make(folder: Path, encoder: Path, spec: Training) -> dict:
    from transformers import set_seed

    rows = training_pairs()
    least, most = spec.others // spec.queries + 1, len(rows) // spec.queries
    if not least <= spec.steps <= most:
        accepted = f"{least} to {most}: {len(rows)} pairs, {spec.queries} a step"
        raise refuse("steps", spec.steps, accepted)
    print(f"training a reranker, once: {spec.steps} steps", file=sys.stderr)
    set_seed(spec.seed)
    rows = random.sample(rows, spec.steps * spec.queries)
    reranker = _with_head(encoder)
    losses = _train(reranker, spec, _examples(encoder, rows, spec), folder)
    reranker.save_pretrained(str(folder), create_model_card=False)
    for name in ("LICENSE", "NOTICE"):  # of the encoder's weights
        if (encoder / name).is_file():
            shutil.copyfile(encoder / name, folder / name)
    return {"pairs": len(rows), "losses": losses}


def _examples(encoder: Path, rows: list[tuple[str, str]], spec: Training) -> Dataset:
    """One row for each query: its passage before `others` negatives, and their labels; in the order of training."""
    from datasets import Dataset
    from IPython.utils.capture import capture_output
    from sentence_transformers.util import mine_hard_negatives

    queries, passages = map(list, zip(*rows, strict=True))
    with capture_output():  # progress bars that no option turns off
        examples = mine_hard_negatives(
            Dataset.from_dict({"query": queries, "passages": passages}),
            encoder_family.open_folder(encoder),
            range_max=min(NEAREST, len(rows) - 1),
            num_negatives=spec.others,
            sampling_strategy="random",
            output_format="labeled-list",
            verbose=False,
        ).to_list()
    for number, row in enumerate(examples):
        own, *negatives = row["passages"]
        if number < spec.easy * len(examples):
            hard = random.choice(negatives)
            others = [passage for passage in passages if passage not in (own, hard)]
            negatives = [hard, *random.sample(others, len(negatives) - 1)]
        row["passages"], row["labels"] = [own, *negatives], [ONE_HOT] + [0.0] * len(negatives)
    return Dataset.from_list(examples)


def _with_head(encoder: Path) -> Any:
    """The encoder as a float32 CrossEncoder, whose score is the logit of a randomly initialized head.

    Its word embeddings are frozen, and it has no dropout: it sees every query once.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads())
    logging.disable(logging.WARNING)  # about the new head
    try:
        reranker = from_folder(
            "CrossEncoder",
            encoder,
            num_labels=1,
            activation_fn=torch.nn.Identity(),
            device="cpu",
            model_kwargs={"use_safetensors": True, "dtype": "float32"},
        )
    finally:
        logging.disable(logging.NOTSET)
    reranker.model.get_input_embeddings().weight.requires_grad = False
    for module in reranker.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return reranker


def _train(reranker: Any, spec: Training, examples: Dataset, folder: Path) -> list[float]:
    """Train in place, on the examples in their order; returns the loss of every step. Nothing is written to `folder`."""
    from sentence_transformers import cross_encoder
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback

    arguments = cross_encoder.CrossEncoderTrainingArguments(
        output_dir=str(folder),
        max_steps=spec.steps,
        per_device_train_batch_size=spec.queries,
        batch_sampler=lambda data, **options: DefaultBatchSampler(
            SequentialSampler(data), **options
        ),
        learning_rate=spec.learning_rate,
        warmup_steps=max(1, spec.steps // 10),
        weight_decay=0.01,
        seed=spec.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    loss = cross_encoder.losses.ListNetLoss(reranker, mini_batch_size=-1)
    trainer = cross_encoder.CrossEncoderTrainer(reranker, arguments, examples, loss=loss)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
