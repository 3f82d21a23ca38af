"""Encoders: sentences in, embeddings out, opened by sentence-transformers."""

from pathlib import Path

from kerf.config import Calibration
from kerf.core.errors import refuse
from kerf.data import corpora
from kerf.models.families import lengths
from kerf.models.families.causal import tokenizer
from kerf.models.families.opening import loading, opened

NAME, CALLED = "encoder", "an encoder"
READS = ("texts", "sentences", "passages")  # keys of `evaluation`
EVALUATION = "kerf.evaluate.encoder"

BATCH_SIZE = 16
EXAMPLES = (
    "A man is playing the guitar.",
    "Someone makes music on a stage.",
)  # what `answer` takes


def takes(architecture: str, folder: Path) -> bool:
    """Every model that no other family takes."""
    return True


def opens_as(opened) -> bool:
    """Every model that no other family opens."""
    return True


def open_folder(folder: Path, device: str = "cpu"):
    """SentenceTransformer without progress bars, network or remote code, in float32 on `device`; it cuts texts at its positions."""
    return lengths.bounded(opened("SentenceTransformer", folder, device))


def with_weights(folder: Path, class_name: str, weights: dict, device: str = "cpu"):
    """The SentenceTransformer of `folder` with a transformer of `weights` inside."""
    with loading(class_name, weights):
        return open_folder(folder, device)


def network(opened):
    """The transformer inside, whose layers are compressed."""
    return opened[0].auto_model


def batches(opened, spec: Calibration) -> list[dict]:
    """Batches of the calibration sentences, shortest first. Raises InputError for a max_length above the model's positions."""
    lengths.check_positions(
        "calibration.max_length", spec.max_length, lengths.positions(network(opened).config)
    )
    return tokenized(
        opened,
        corpora.calibration_sentences(spec.texts, spec.samples, spec.seed),
        BATCH_SIZE,
        spec.max_length,
    )


def sample_texts(folder: Path, spec: Calibration) -> list[str]:
    """The calibration text, to be held against the evaluation text. Raises InputError for too few sentences."""
    lengths.check("calibration.max_length", spec.max_length, folder)
    return lengths.kept(
        tokenizer(lengths.inner(folder)),
        corpora.calibration_sentences(spec.texts, spec.samples, spec.seed),
    )


def describe_sample(folder: Path, spec: Calibration) -> str:
    """What the calibration sample is, in a line for a reader."""
    sample = corpora.calibration_sentences(spec.texts, spec.samples, spec.seed)
    return f"{len(sample)} sentences, {sum(len(s.split()) for s in sample):,} words; the first: {sample[0]!r}{lengths.left_out(tokenizer(lengths.inner(folder)), sample)}"


def held_batches(opened, spec: Calibration) -> list[dict]:
    """Batches of sentences of the calibration part that are not in the sample."""
    return tokenized(
        opened, corpora.held_back(spec.texts, spec.samples, spec.seed), BATCH_SIZE, spec.max_length
    )


def check_held_back(folder: Path, spec: Calibration) -> None:
    """Refuse a sample that leaves no sentence to hold back."""
    corpora.held_back(spec.texts, spec.samples, spec.seed)


def tokenized(opened, sentences: list[str], batch_size: int, max_length: int) -> list[dict]:
    """Batches (input_ids, attention_mask, ... of shape (batch, length)), shortest texts first; those without a token are left out.

    Raises InputError where none is left.
    """
    ordered = sorted(lengths.kept(opened.tokenizer, sentences), key=len)
    options = {
        "padding": True,
        "truncation": True,
        "max_length": lengths.shorter(opened, max_length),
        "return_tensors": "pt",
    }
    pieces = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return [dict(opened.tokenizer(piece, **options)) for piece in pieces]


def token_ids(opened, sentences: list[str], max_length: int) -> list[list[int]]:
    """Token numbers of each sentence that has any, special tokens included. Raises InputError as `tokenized` does."""
    asked = lengths.kept(opened.tokenizer, sentences)
    return opened.tokenizer(asked, truncation=True, max_length=lengths.shorter(opened, max_length))[
        "input_ids"
    ]


def inputs(opened) -> list[str]:
    """Names of what the network takes of a tokenized text."""
    return ["input_ids", "attention_mask"]


def forward(opened, batch: dict):
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


def output(opened, reader, texts: tuple[str, str]):
    """Embeddings (2, features) of a pair of sentences, of length 1. Raises InputError for one without a token."""
    for text, any_token in zip(texts, lengths.with_tokens(reader, list(texts)), strict=True):
        if not any_token:
            raise refuse("text", text, "at least one token")
    return opened.encode(list(texts), normalize_embeddings=True, convert_to_tensor=True)


def output_diff(reader, before, after) -> list[tuple[str, float, float]]:
    """The similarity of the pair in two models' answers."""
    return [("similarity", float(before[0] @ before[1]), float(after[0] @ after[1]))]
