"""Rerankers: a query and a passage in, one score out, opened by sentence-transformers as a CrossEncoder: a head with one row, or a
language model whose score is the difference of its logits of two tokens, yes and no.

Calibration text is cut into inverse-cloze pairs (`kerf.data.corpora.query_passage_pairs`); every second query stands beside the passage of
another one, since most of what a reranker reads does not answer the query. What the functions do stands in `families.Family`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from kerf.config import Calibration
from kerf.core.errors import refuse
from kerf.data import corpora
from kerf.models.families import detection, lengths
from kerf.models.families.encoder import BATCH_SIZE
from kerf.models.families.encoder import reader as reader
from kerf.models.families.lengths import check_positions, tokenized, tokenizer
from kerf.models.families.opening import loading
from kerf.models.families.usage import conventions as conventions

NAME, CALLED = "reranker", "a reranker"
READS: tuple[str, ...] = ("retrieval", "queries", "corpus", "same_domain")
EVALUATION = "kerf.evaluate.cross_encoder"
TOWER = "The Eiffel Tower stands in Paris, on the Champ de Mars."
EXAMPLES: tuple[str, ...] = ("Where is the Eiffel Tower?", TOWER)
CLASSIFIER, SCORE = "ForSequenceClassification", "LogitScore"
HELD_BACK = 64  # pairs on which a step is judged


def takes(architecture: str, folder: Path) -> bool:
    """A head that scores a pair, or the scores of a language model's two tokens, yes and no."""
    saved_as, modules = detection.model_type(folder), detection.modules(folder)
    scores = architecture.endswith(CLASSIFIER) and "Pooling" not in modules
    return saved_as == "CrossEncoder" or SCORE in modules or scores and not saved_as


def can_take(architecture: str, folder: Path) -> bool:
    """Whether sentence-transformers makes a reranker of it: also of a language model."""
    of_tokens = architecture.endswith("ForCausalLM") and not detection.modules(folder)
    return takes(architecture, folder) or of_tokens


def reads_template(folder: Path) -> bool:
    """Whether the score is that of two tokens of a language model, which reads a pair in its chat template."""
    return not detection.architecture(folder).endswith(CLASSIFIER)


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
    features = {opened[0].module_output_name: network(opened)(**batch).logits.float()}
    for module in list(opened)[1:]:
        features = module(features)
    return opened.activation_fn(features["scores"])


def batches(opened: Any, spec: Calibration) -> list[dict]:
    """The calibration sample as batches of network inputs. Raises InputError for too little text."""
    check_positions("calibration.max_length", spec.max_length, lengths.of_opened(opened))
    return _tokenized(opened, _drawn(spec)[0], spec.max_length)


def _tokenized(opened: Any, pairs: list[tuple[str, str]], max_length: int) -> list[dict]:
    """Batches of pairs as `predict` reads them."""
    prompt = opened.prompts.get(opened.default_prompt_name)
    batches = tokenized(opened, pairs, BATCH_SIZE, max_length, prompt)
    # The score of a language model's two tokens needs one position, and the head computes no others.
    keys = {"use_cache": False, "logits_to_keep": 1} if len(opened) > 1 else {}
    return [{**batch, **keys} for batch in batches]


def held_batches(opened: Any, spec: Calibration) -> list[dict]:
    """Batches of calibration text outside the sample. Raises InputError where none is left."""
    return _tokenized(opened, _held_back(spec), spec.max_length)


def check_held_back(folder: Path, spec: Calibration) -> None:
    """Raise InputError for a sample that leaves no text to hold out."""
    _held_back(spec)


def _held_back(spec: Calibration) -> list[tuple[str, str]]:
    rest = _drawn(spec)[1]
    if not rest:
        accepted = f"at most {spec.samples - 1}: a step needs pairs held back"
        raise refuse("calibration.samples", spec.samples, accepted)
    return rest[:HELD_BACK]


def sample_texts(folder: Path, spec: Calibration) -> list[str]:
    """The calibration text. Raises InputError for too little of it."""
    check_positions("calibration.max_length", spec.max_length, lengths.of_folder(folder))
    pairs = lengths.readable(tokenizer(folder), _drawn(spec)[0])
    return [" ".join(pair) for pair in pairs]


def describe_sample(folder: Path, spec: Calibration) -> str:
    """One line that describes the calibration sample."""
    pairs = _drawn(spec)[0]
    size = f"{len(pairs)} pairs of a query and a passage, every second one of its own"
    left_out = lengths.have_tokens(tokenizer(folder), pairs).count(False)
    return f"{size}; the first: {pairs[0]!r}{lengths.left_out_note(left_out)}"


def read_ids(opened: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of pairs of texts, the first with the last and so on, as the model reads them."""
    pairs = zip(texts, texts[::-1], strict=True)
    return [lengths.ids_of(opened.preprocess([pair])) for pair in pairs]


def output(opened: Any, reader: Any, texts: tuple[str, ...]) -> Any:
    """Score (1,) of a passage for a query. Raises InputError for a pair without a token."""
    if not lengths.have_tokens(reader, [texts])[0]:
        raise refuse("text", texts, "at least one token")
    return opened.predict([texts], convert_to_tensor=True).cpu()


def output_diff(reader: Any, before: Any, after: Any) -> list[tuple[str, float, float]]:
    """Rows (label, before, after) of how two outputs differ."""
    return [("score", float(before[0]), float(after[0]))]


def _drawn(spec: Calibration) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The sample of pairs and others outside it, in random order: a query with its own passage, one with another's, ..."""

    def pool_of(name: str, _: int) -> list[tuple[str, str]]:
        rows = corpora.query_passage_pairs(name, "calibration")
        order = np.random.default_rng(spec.seed).permutation(len(rows))
        passages = order.copy()
        passages[1::2] = np.roll(order, -2)[1::2]
        return [(rows[q][0], rows[p][1]) for q, p in zip(order, passages, strict=True)]

    return corpora.drawn(spec.texts, spec.samples, "pairs", pool_of)
