"""Encoders: sentences in, embeddings out, opened by sentence-transformers. What the functions do stands in `families.Family`."""

from itertools import chain, cycle
from pathlib import Path
from typing import Any

from kerf.config import Calibration
from kerf.core.errors import refuse
from kerf.data import corpora
from kerf.models.families import detection, lengths, static
from kerf.models.families.lengths import check_positions, tokenized, tokenizer
from kerf.models.families.opening import loading
from kerf.models.families.sources import by_source
from kerf.models.families.usage import conventions as conventions
from kerf.models.model_files import read_or_empty

NAME, CALLED = "encoder", "an encoder"
READS: tuple[str, ...] = ("texts", "same_domain", "sentences", "retrieval", "queries", "passages")
READS += ("corpus", "similarity", "classification", "labelled")
EVALUATION = "kerf.evaluate.encoder"
EXAMPLES: tuple[str, ...] = ("A man is playing the guitar.", "Someone makes music on a stage.")
BATCH_SIZE = 16


def takes(architecture: str, folder: Path) -> bool:
    """Whether a configuration naming this class is of the family."""
    return True  # every model that no other family takes


def can_take(architecture: str, folder: Path) -> bool:
    """Whether it is no reranker, whose output is a score."""
    return "LogitScore" not in detection.modules(folder) and not architecture.endswith(
        "ForSequenceClassification"
    )


def opens_as(opened: Any) -> bool:
    """Whether an opened model is of the family."""
    return True  # every model that no other family opens


def open_folder(folder: Path, device: str = "cpu") -> Any:
    """SentenceTransformer in float32 on `device`, with the prompts of its configuration; it truncates texts at its positions."""
    config = read_or_empty(folder / "config_sentence_transformers.json", dict)
    prompts = dict(config.get("prompts") or {})
    for name in ("passage", "corpus"):  # encode_document prefers an empty prompt of its own
        prompts["document"] = prompts.get("document") or prompts.get(name, "")
    options = {"prompts": prompts, "default_prompt_name": config.get("default_prompt_name")}
    if not detection.is_static(folder):
        return lengths.open_bounded("SentenceTransformer", folder, device, **options)
    return static.open_folder(folder, device, **options)


def with_weights(folder: Path, class_name: str, weights: dict, device: str = "cpu") -> Any:
    """The model of `folder` with a state dict of `weights`, in float32 on `device`."""
    load = (
        static.loading(weights) if class_name == detection.STATIC else loading(class_name, weights)
    )
    with load:
        return open_folder(folder, device)


def network(opened: Any) -> Any:
    """The torch module whose layers are compressed."""
    return opened[0] if static.is_static(opened) else opened[0].auto_model


def encode_queries(opened: Any, texts: list[str], **options: Any) -> Any:
    """Embeddings (texts, features) of queries, with the model's prompt for them; options: those of `encode`."""
    return opened.encode_query(texts, **options)


def encode_documents(opened: Any, texts: list[str], **options: Any) -> Any:
    """Embeddings (texts, features) of passages, with the model's prompt for them, never with its default prompt."""
    return opened.encode_document(texts, **options)


def encode_texts(opened: Any, texts: list[str], **options: Any) -> Any:
    """Embeddings (texts, features) of texts that are neither: with the default prompt, if the model has one."""
    return opened.encode(texts, **options)


def inputs(opened: Any) -> list[str]:
    """Names of the network's inputs, each (texts, tokens)."""
    return ["input_ids", "attention_mask"]


def forward(opened: Any, batch: dict) -> Any:
    """Embeddings (texts, features), float32, of a tokenized batch, before they are truncated."""
    if static.is_static(opened):
        return opened(dict(batch))["sentence_embedding"].float()
    return pool(opened, network(opened)(**batch).last_hidden_state.float(), batch["attention_mask"])


def pool(opened: Any, hidden: Any, attention_mask: Any) -> Any:
    """Embeddings (texts, features) that a SentenceTransformer makes of hidden states (texts, length, features)."""
    features = {"token_embeddings": hidden, "attention_mask": attention_mask}
    for module in list(opened)[1:]:
        features = module(features)
    return features["sentence_embedding"]


def batches(opened: Any, spec: Calibration) -> list[dict]:
    """The calibration sample as batches of network inputs, a share of it with each prompt. Raises InputError for too little text."""
    check_positions("calibration.max_length", spec.max_length, lengths.of_opened(opened))
    return by_source(spec, lambda s: prompted(opened, _sample(s), s.max_length))


def prompted(opened: Any, sentences: list[str], max_length: int) -> list[dict]:
    """Batches in which the model's prompts take turns."""
    prompts = _prompts(opened)
    parts = [(prompt, sentences[n :: len(prompts)]) for n, prompt in enumerate(prompts)]
    batches = (
        tokenized(opened, part, BATCH_SIZE, max_length, text) for text, part in parts if part
    )
    return list(chain.from_iterable(batches))


def _prompts(opened: Any) -> list[str]:
    """What the model reads before a query, before a passage and before any other text, each once."""
    names = ("query", "document", opened.default_prompt_name or "query")
    return [*dict.fromkeys(opened.prompts[name] for name in names)]


def _sample(spec: Calibration) -> list[str]:
    return corpora.calibration_sentences(spec.texts, spec.samples, spec.seed)


def held_batches(opened: Any, spec: Calibration) -> list[dict]:
    """Batches of calibration text outside the sample. Raises InputError where none is left."""
    held = corpora.held_back(spec.texts, spec.samples, spec.seed)
    return prompted(opened, held, spec.max_length)


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
    """Token numbers of each sentence that has any, special tokens and prompts included. Raises InputError as `tokenized` does."""
    known, prompts = lengths.readable(opened.tokenizer, sentences), cycle(_prompts(opened))
    texts = [prompt + text for prompt, text in zip(prompts, known, strict=False)]
    return opened.tokenizer(texts, **lengths.truncation(opened, max_length))["input_ids"]


def read_ids(opened: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text as the model reads it, behind each of its prompts."""
    read = [
        opened.preprocess([text], prompt=prompt) for prompt in _prompts(opened) for text in texts
    ]
    return [lengths.ids_of(features) for features in read]


def reader(opened: Any) -> Any:
    """The model's tokenizer."""
    return lengths.as_transformers(opened.tokenizer)


def output(opened: Any, reader: Any, texts: tuple[str, ...]) -> Any:
    """Embeddings (2, features) of a pair of sentences, of length 1. Raises InputError for one without a token."""
    for text, has_token in zip(texts, lengths.have_tokens(reader, list(texts)), strict=True):
        if not has_token:
            raise refuse("text", text, "at least one token")
    return opened.encode(list(texts), normalize_embeddings=True, convert_to_tensor=True).cpu()


def output_diff(reader: Any, before: Any, after: Any) -> list[tuple[str, float, float]]:
    """The cosine similarity of the pair of sentences."""
    return [("similarity", float(before[0] @ before[1]), float(after[0] @ after[1]))]
