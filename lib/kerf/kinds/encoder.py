"""Encoders: sentences in, embeddings out, opened by sentence-transformers."""

from pathlib import Path

from kerf import texts
from kerf.kinds.opening import loading, opened
from kerf.steps import Calibration

BATCH_SIZE = 16
EXAMPLES = ("A man is playing the guitar.", "Someone makes music on a stage.")  # what `answer` takes


def open_folder(folder: Path, device: str = "cpu"):
    """SentenceTransformer without progress bars, network or remote code, in float32 on `device`."""
    return opened("SentenceTransformer", folder, device)


def with_weights(folder: Path, class_name: str, weights: dict, device: str = "cpu"):
    """The SentenceTransformer of `folder` with a transformer of `weights` inside."""
    with loading(class_name, weights):
        return open_folder(folder, device)


def network(opened):
    """The transformer inside, whose layers are compressed."""
    return opened[0].auto_model


def batches(opened, spec: Calibration) -> list[dict]:
    """Batches of the calibration sentences, shortest first."""
    return tokenized(opened, texts.calibration_sentences(spec.texts, spec.samples, spec.seed), BATCH_SIZE, spec.max_length)


def sample_texts(folder: Path, spec: Calibration) -> list[str]:
    """The calibration text, to be held against the evaluation text. Raises Refused for too few sentences."""
    return texts.calibration_sentences(spec.texts, spec.samples, spec.seed)


def about(folder: Path, spec: Calibration) -> str:
    """What the calibration sample is, in a line for a reader."""
    sample = sample_texts(folder, spec)
    return f"{len(sample)} sentences, {sum(len(s.split()) for s in sample):,} words; the first: {sample[0]!r}"


def held_batches(opened, spec: Calibration) -> list[dict]:
    """Batches of sentences of the calibration part that are not in the sample."""
    return tokenized(opened, texts.held_back(spec.texts, spec.samples, spec.seed), BATCH_SIZE, spec.max_length)


def check_held_back(folder: Path, spec: Calibration) -> None:
    """Refuse a sample that leaves no sentence to hold back."""
    texts.held_back(spec.texts, spec.samples, spec.seed)


def tokenized(opened, sentences: list[str], batch_size: int, max_length: int) -> list[dict]:
    """Batches (input_ids, attention_mask, ... of shape (batch, length)), shortest texts first."""
    ordered = sorted(sentences, key=len)
    options = {"padding": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    pieces = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return [dict(opened.tokenizer(piece, **options)) for piece in pieces]


def token_ids(opened, sentences: list[str], max_length: int) -> list[list[int]]:
    """Token numbers of each sentence, special tokens included."""
    return opened.tokenizer(sentences, truncation=True, max_length=max_length)["input_ids"]


def inputs(opened) -> list[str]:
    """Names of what the network takes of a tokenized text."""
    return ["input_ids", "attention_mask"]


def answers(opened, batch: dict):
    """Embeddings (texts, features), float32, of a tokenized batch."""
    return pool(opened, network(opened)(**batch).last_hidden_state.float(), batch["attention_mask"])


def pool(opened, hidden, attention_mask):
    """Embeddings (texts, features) that a SentenceTransformer makes of hidden states."""
    features = {"token_embeddings": hidden, "attention_mask": attention_mask}
    for module in list(opened)[1:]:
        features = module(features)
    return features["sentence_embedding"]


def reader(opened):
    """The tokenizer, for `answer` and `told`."""
    return opened.tokenizer


def answer(opened, reader, texts: tuple[str, str]):
    """Embeddings (2, features) of a pair of sentences, of length 1."""
    return opened.encode(list(texts), normalize_embeddings=True, convert_to_tensor=True)


def told(reader, before, after) -> list[tuple[str, float, float]]:
    """The similarity of the pair in two models' answers."""
    return [("similarity", float(before[0] @ before[1]), float(after[0] @ after[1]))]
