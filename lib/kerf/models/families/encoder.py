"""Encoders: sentences in, embeddings out, opened by sentence-transformers. What the functions do stands in `families.Family`."""

from pathlib import Path
from typing import Any

from kerf.config import Calibration
from kerf.core.errors import refuse
from kerf.data import corpora
from kerf.models.families import lengths
from kerf.models.families.lengths import check_positions, tokenized, tokenizer
from kerf.models.families.opening import loading

NAME, CALLED = "encoder", "an encoder"
READS: tuple[str, ...] = ("texts", "sentences", "passages")
EVALUATION = "kerf.evaluate.encoder"
EXAMPLES: tuple[str, ...] = ("A man is playing the guitar.", "Someone makes music on a stage.")
BATCH_SIZE = 16


def takes(architecture: str, folder: Path) -> bool:
    """Whether a configuration naming this class is of the family."""
    return True  # every model that no other family takes


def opens_as(opened: Any) -> bool:
    """Whether an opened model is of the family."""
    return True  # every model that no other family opens


def open_folder(folder: Path, device: str = "cpu") -> Any:
    """SentenceTransformer in float32 on `device`; it truncates texts at its positions."""
    return lengths.open_bounded("SentenceTransformer", folder, device)


def with_weights(folder: Path, class_name: str, weights: dict, device: str = "cpu") -> Any:
    """The model of `folder` with a state dict of `weights`, in float32 on `device`."""
    with loading(class_name, weights):
        return open_folder(folder, device)


def network(opened: Any) -> Any:
    """The torch module whose layers are compressed."""
    return opened[0].auto_model


def inputs(opened: Any) -> list[str]:
    """Names of the network's inputs, each (texts, tokens)."""
    return ["input_ids", "attention_mask"]


def forward(opened: Any, batch: dict) -> Any:
    """Embeddings (texts, features), float32, of a tokenized batch."""
    return pool(opened, network(opened)(**batch).last_hidden_state.float(), batch["attention_mask"])


def pool(opened: Any, hidden: Any, attention_mask: Any) -> Any:
    """Embeddings (texts, features) that a SentenceTransformer makes of hidden states (texts, length, features)."""
    features = {"token_embeddings": hidden, "attention_mask": attention_mask}
    for module in list(opened)[1:]:
        features = module(features)
    return features["sentence_embedding"]


def batches(opened: Any, spec: Calibration) -> list[dict]:
    """The calibration sample as batches of network inputs. Raises InputError for too little text."""
    most = lengths.positions(network(opened).config)
    check_positions("calibration.max_length", spec.max_length, most)
    return tokenized(opened, _sample(spec), BATCH_SIZE, spec.max_length)


def _sample(spec: Calibration) -> list[str]:
    return corpora.calibration_sentences(spec.texts, spec.samples, spec.seed)


def held_batches(opened: Any, spec: Calibration) -> list[dict]:
    """Batches of calibration text outside the sample. Raises InputError where none is left."""
    held = corpora.held_back(spec.texts, spec.samples, spec.seed)
    return tokenized(opened, held, BATCH_SIZE, spec.max_length)


def check_held_back(folder: Path, spec: Calibration) -> None:
    """Raise InputError for a sample that leaves no text to hold out."""
    corpora.held_back(spec.texts, spec.samples, spec.seed)


def sample_texts(folder: Path, spec: Calibration) -> list[str]:
    """The calibration text. Raises InputError for too little of it."""
    check_positions("calibration.max_length", spec.max_length, lengths.of_folder(folder))
    return lengths.readable(tokenizer(folder), _sample(spec))


def describe_sample(folder: Path, spec: Calibration) -> str:
    """One line that describes the calibration sample."""
    sample = _sample(spec)
    size = f"{len(sample)} sentences, {len(' '.join(sample).split()):,} words"
    left_out = lengths.have_tokens(tokenizer(folder), sample).count(False)
    return f"{size}; the first: {sample[0]!r}{lengths.left_out_note(left_out)}"


def token_ids(opened: Any, sentences: list[str], max_length: int) -> list[list[int]]:
    """Token numbers of each sentence that has any, special tokens included. Raises InputError as `tokenized` does."""
    known = lengths.readable(opened.tokenizer, sentences)
    return opened.tokenizer(known, **lengths.truncation(opened, max_length))["input_ids"]


def reader(opened: Any) -> Any:
    """The model's tokenizer."""
    return opened.tokenizer


def output(opened: Any, reader: Any, texts: tuple[str, ...]) -> Any:
    """Embeddings (2, features) of a pair of sentences, of length 1. Raises InputError for one without a token."""
    for text, has_token in zip(texts, lengths.have_tokens(reader, list(texts)), strict=True):
        if not has_token:
            raise refuse("text", text, "at least one token")
    return opened.encode(list(texts), normalize_embeddings=True, convert_to_tensor=True).cpu()


def output_diff(reader: Any, before: Any, after: Any) -> list[tuple[str, float, float]]:
    """The cosine similarity of the pair of sentences."""
    return [("similarity", float(before[0] @ before[1]), float(after[0] @ after[1]))]
