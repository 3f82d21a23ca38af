"""Rerankers: a query and a passage in, one score out, opened by sentence-transformers as a CrossEncoder.

Calibration text is cut into inverse-cloze pairs (`kerf.data.corpora.query_passage_pairs`); every second query stands beside the passage of
another one, since most of what a reranker reads does not answer the query. What the functions do stands in `families.Family`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from kerf.config import Calibration
from kerf.core.errors import refuse
from kerf.data import corpora
from kerf.models.families import lengths
from kerf.models.families.encoder import BATCH_SIZE
from kerf.models.families.encoder import reader as reader
from kerf.models.families.lengths import check_positions, tokenized, tokenizer
from kerf.models.families.opening import loading

NAME, CALLED = "reranker", "a reranker"
READS: tuple[str, ...] = ("texts", "passages")
EVALUATION = "kerf.evaluate.cross_encoder"
TOWER = "The Eiffel Tower stands in Paris, on the Champ de Mars."
EXAMPLES: tuple[str, ...] = ("Where is the Eiffel Tower?", TOWER)
HELD_BACK = 64  # pairs on which a step is judged


def takes(architecture: str, folder: Path) -> bool:
    """Whether a configuration naming this class is of the family."""
    return architecture.endswith("ForSequenceClassification")  # a head that scores a pair


def opens_as(opened: Any) -> bool:
    """Whether an opened model is of the family."""
    from sentence_transformers import CrossEncoder

    return isinstance(opened, CrossEncoder)


def open_folder(folder: Path, device: str = "cpu") -> Any:
    """CrossEncoder in float32 on `device`; it truncates pairs at its positions. Raises InputError for one with several scores."""
    opened = lengths.open_bounded("CrossEncoder", folder, device)
    if opened.num_labels != 1:
        accepted = f"a cross-encoder with one score; this one gives {opened.num_labels}"
        raise refuse("model", str(folder), accepted)
    return opened


def with_weights(folder: Path, class_name: str, weights: dict, device: str = "cpu") -> Any:
    """The model of `folder` with a state dict of `weights`, in float32 on `device`."""
    with loading(class_name, weights):
        return open_folder(folder, device)


def network(opened: Any) -> Any:
    """The torch module whose layers are compressed."""
    return opened.model


def inputs(opened: Any) -> list[str]:
    """Names of the network's inputs, each (texts, tokens)."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return [name for name in names if name in opened.tokenizer.model_input_names]


def forward(opened: Any, batch: dict) -> Any:
    """Scores (pairs, 1), float32, of a tokenized batch, as `predict` returns them."""
    return opened.activation_fn(network(opened)(**batch).logits.float())


def batches(opened: Any, spec: Calibration) -> list[dict]:
    """The calibration sample as batches of network inputs. Raises InputError for too little text."""
    most = lengths.positions(network(opened).config)
    check_positions("calibration.max_length", spec.max_length, most)
    return tokenized(opened, _drawn(spec)[: spec.samples], BATCH_SIZE, spec.max_length)


def held_batches(opened: Any, spec: Calibration) -> list[dict]:
    """Batches of calibration text outside the sample. Raises InputError where none is left."""
    return tokenized(opened, _held_back(spec), BATCH_SIZE, spec.max_length)


def check_held_back(folder: Path, spec: Calibration) -> None:
    """Raise InputError for a sample that leaves no text to hold out."""
    _held_back(spec)


def _held_back(spec: Calibration) -> list[tuple[str, str]]:
    pairs = _drawn(spec)
    if len(pairs) == spec.samples:
        accepted = f"at most {spec.samples - 1}: a step needs pairs held back"
        raise refuse("calibration.samples", spec.samples, accepted)
    return pairs[spec.samples :][:HELD_BACK]


def sample_texts(folder: Path, spec: Calibration) -> list[str]:
    """The calibration text. Raises InputError for too little of it."""
    check_positions("calibration.max_length", spec.max_length, lengths.of_folder(folder))
    pairs = lengths.readable(tokenizer(folder), _drawn(spec)[: spec.samples])
    return [" ".join(pair) for pair in pairs]


def describe_sample(folder: Path, spec: Calibration) -> str:
    """One line that describes the calibration sample."""
    pairs = _drawn(spec)[: spec.samples]
    size = f"{len(pairs)} pairs of a query and a passage, every second one of its own"
    left_out = lengths.have_tokens(tokenizer(folder), pairs).count(False)
    return f"{size}; the first: {pairs[0]!r}{lengths.left_out_note(left_out)}"


def output(opened: Any, reader: Any, texts: tuple[str, ...]) -> Any:
    """Score (1,) of a passage for a query. Raises InputError for a pair without a token."""
    if not lengths.have_tokens(reader, [texts])[0]:
        raise refuse("text", texts, "at least one token")
    return opened.predict([texts], convert_to_tensor=True).cpu()


def output_diff(reader: Any, before: Any, after: Any) -> list[tuple[str, float, float]]:
    """Rows (label, before, after) of how two outputs differ."""
    return [("score", float(before[0]), float(after[0]))]


def _drawn(spec: Calibration) -> list[tuple[str, str]]:
    """All pairs of the calibration part in a random order: a query with its own passage, one with another's, ..."""
    rows = corpora.query_passage_pairs(spec.texts, "calibration")
    if spec.samples > len(rows):
        accepted = f"1 to {len(rows)}, the pairs that {spec.texts} has for it"
        raise refuse("calibration.samples", spec.samples, accepted)
    order = np.random.default_rng(spec.seed).permutation(len(rows))
    passages = order.copy()
    passages[1::2] = np.roll(order, -2)[1::2]
    return [(rows[q][0], rows[p][1]) for q, p in zip(order, passages, strict=True)]
