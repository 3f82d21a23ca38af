"""Rerankers: a query and a passage in, one score out, opened by sentence-transformers as a CrossEncoder.

Calibration text is cut into inverse-cloze pairs (`kerf.data.corpora.stretches`); every second query stands beside the passage of
another one, since most of what a reranker reads does not answer the query.
"""

from pathlib import Path

import numpy as np

from kerf.config import Calibration
from kerf.core.errors import refuse
from kerf.data import corpora
from kerf.models.families import lengths
from kerf.models.families.causal import tokenizer
from kerf.models.families.opening import loading, opened

NAME, CALLED = "reranker", "a reranker"
READS = ("texts", "passages")  # keys of `evaluation`
EVALUATION = "kerf.evaluate.cross_encoder"

BATCH_SIZE = 16
EXAMPLES = (
    "Where is the Eiffel Tower?",
    "The Eiffel Tower stands in Paris, on the Champ de Mars.",
)  # what `answer` takes
HELD_BACK = 64  # pairs by which a step judges itself


def takes(architecture: str, folder: Path) -> bool:
    """Classes with a head that scores a pair."""
    return architecture.endswith("ForSequenceClassification")


def opens_as(opened) -> bool:
    """CrossEncoders of sentence-transformers."""
    from sentence_transformers import CrossEncoder

    return isinstance(opened, CrossEncoder)


def open_folder(folder: Path, device: str = "cpu"):
    """CrossEncoder, in float32 on `device`; it cuts pairs at its positions. Raises InputError for one that gives more than one score."""
    found = lengths.bounded(opened("CrossEncoder", folder, device))
    if found.num_labels != 1:
        raise refuse(
            "model",
            str(folder),
            f"a cross-encoder with one score; this one gives {found.num_labels}",
        )
    return found


def with_weights(folder: Path, class_name: str, weights: dict, device: str = "cpu"):
    """The CrossEncoder of `folder` with a transformer of `weights` inside."""
    with loading(class_name, weights):
        return open_folder(folder, device)


def network(opened):
    """The transformer inside, head included."""
    return opened.model


def inputs(opened) -> list[str]:
    """Names of what the network takes of a tokenized pair."""
    return [
        name
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in opened.tokenizer.model_input_names
    ]


def forward(opened, batch: dict):
    """Scores (pairs, 1), float32, of a tokenized batch, as `predict` gives them."""
    return opened.activation_fn(network(opened)(**batch).logits.float())


def batches(opened, spec: Calibration) -> list[dict]:
    """Batches of `samples` pairs of the calibration part, shortest first. Raises InputError for too few, and for a max_length above the model's positions."""
    lengths.check_positions(
        "calibration.max_length", spec.max_length, lengths.positions(network(opened).config)
    )
    return tokenized(opened, _drawn(spec)[: spec.samples], spec.max_length)


def held_batches(opened, spec: Calibration) -> list[dict]:
    """Batches of pairs of the calibration part that are not in the sample. Raises InputError when none is left."""
    return tokenized(opened, _held_back(spec), spec.max_length)


def check_held_back(folder: Path, spec: Calibration) -> None:
    """Refuse a sample that leaves no pair to hold back."""
    _held_back(spec)


def sample_texts(folder: Path, spec: Calibration) -> list[str]:
    """The calibration text, to be held against the evaluation text. Raises InputError for too few pairs."""
    lengths.check("calibration.max_length", spec.max_length, folder)
    return [
        " ".join(pair)
        for pair in lengths.kept(tokenizer(lengths.inner(folder)), _drawn(spec)[: spec.samples])
    ]


def describe_sample(folder: Path, spec: Calibration) -> str:
    """What the calibration sample is, in a line for a reader."""
    pairs = _drawn(spec)[: spec.samples]
    return f"{len(pairs)} pairs of a query and a passage, every second one of its own; the first: {pairs[0]!r}{lengths.left_out(tokenizer(lengths.inner(folder)), pairs)}"


def reader(opened):
    """The tokenizer, for `answer` and `told`."""
    return opened.tokenizer


def output(opened, reader, texts: tuple[str, str]):
    """Score (1,) of a passage for a query. Raises InputError for a pair without a token."""
    if not lengths.with_tokens(reader, [texts])[0]:
        raise refuse("text", texts, "at least one token")
    return opened.predict([texts], convert_to_tensor=True)


def output_diff(reader, before, after) -> list[tuple[str, float, float]]:
    """The score of the pair in two models' answers."""
    return [("score", float(before[0]), float(after[0]))]


def tokenized(opened, pairs: list[tuple[str, str]], max_length: int) -> list[dict]:
    """Batches (input_ids, attention_mask, ... of shape (batch, length)), shortest pairs first; those without a token are left out.

    Raises InputError where none is left.
    """
    ordered = sorted(lengths.kept(opened.tokenizer, pairs), key=lambda pair: sum(map(len, pair)))
    options = {
        "padding": True,
        "truncation": True,
        "max_length": lengths.shorter(opened, max_length),
        "return_tensors": "pt",
    }
    pieces = [ordered[start : start + BATCH_SIZE] for start in range(0, len(ordered), BATCH_SIZE)]
    return [
        dict(opened.tokenizer(*map(list, zip(*piece, strict=True)), **options)) for piece in pieces
    ]


def _held_back(spec: Calibration) -> list[tuple[str, str]]:
    rest = _drawn(spec)[spec.samples :]
    if not rest:
        raise refuse(
            "calibration.samples",
            spec.samples,
            f"at most {spec.samples - 1}: a step needs pairs held back",
        )
    return rest[:HELD_BACK]


def _drawn(spec: Calibration) -> list[tuple[str, str]]:
    """All pairs of the calibration part in a random order: a query with its own passage, one with another's, ..."""
    rows = corpora.stretches(spec.texts, "calibration")
    if spec.samples > len(rows):
        raise refuse(
            "calibration.samples",
            spec.samples,
            f"1 to {len(rows)}, the pairs that {spec.texts} has for it",
        )
    order = np.random.default_rng(spec.seed).permutation(len(rows))
    return [
        (rows[index][0], rows[order[(place + place % 2 * 2) % len(order)]][1])
        for place, index in enumerate(order)
    ]
