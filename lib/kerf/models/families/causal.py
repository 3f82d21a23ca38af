"""Causal language models: tokens in, the probability of the next one out, opened by transformers. Text is a stream of documents,
cut into chunks of equal length without padding. What the functions do stands in `families.Family`."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kerf.config import Calibration
from kerf.core.errors import refuse
from kerf.data import corpora
from kerf.data.own_files import Chat
from kerf.models.families import detection, lengths
from kerf.models.families.lengths import tokenizer
from kerf.models.families.opening import from_folder, open_weights
from kerf.models.families.sources import by_source

NAME, CALLED = "causal", "a causal language model"
READS: tuple[str, ...] = ("texts", "same_domain", "passages", "num_chunks", "seq_len", "restored")
READS += ("tasks", "items")
EVALUATION = "kerf.evaluate.causal"
EXAMPLES: tuple[str, ...] = ("The capital of France is the city of",)
# Ends of classes of causal language models.
CLASSES = ("ForCausalLM", "GPT2LMHeadModel", "OpenAIGPTLMHeadModel", "CTRLLMHeadModel")
BATCH_TOKENS = 1024  # of a batch of chunks
HELD_BACK = 16  # chunks on which a step is judged
BETWEEN = "\n\n"  # documents
SPARE = 2  # times the words that a sample is drawn from
LIKELY = 5  # tokens that `output_diff` compares


def takes(architecture: str, folder: Path) -> bool:
    """Classes with a head for the next token, where sentence-transformers does not make an encoder of them."""
    others = detection.modules(folder) or detection.model_type(folder)
    return architecture.endswith(CLASSES) and not others


def can_take(architecture: str, folder: Path) -> bool:
    """Whether the network of the directory itself has a head for the next token."""
    return architecture.endswith(CLASSES) and lengths.inner(folder) == folder


def opens_as(opened: Any) -> bool:
    """Whether an opened model is of the family."""
    from transformers import PreTrainedModel

    return isinstance(opened, PreTrainedModel)


def open_folder(folder: Path, device: str = "cpu") -> Any:
    """AutoModelForCausalLM in float32 on `device`."""
    return _opened(folder, device, "AutoModelForCausalLM", use_safetensors=True)


def with_weights(folder: Path, class_name: str, weights: dict, device: str = "cpu") -> Any:
    """The model of `folder` with a state dict of `weights`, in float32 on `device`."""
    config = from_folder("AutoConfig", folder)
    opened = _opened(folder, device, class_name, config=config, state_dict=weights)
    if (folder / "generation_config.json").is_file():  # read only beside weights in a file
        opened.generation_config = from_folder("GenerationConfig", folder)
    return opened


def _opened(folder: Path, device: str, class_name: str, **options: Any) -> Any:
    opened = open_weights(class_name, folder, dtype="float32", **options)
    opened.name_or_path = str(folder)  # of a candidate too: its tokenizer lies there
    return opened.to(device)


def network(opened: Any) -> Any:
    """The torch module whose layers are compressed."""
    return opened  # head included


def conventions(opened: Any) -> dict[str, Any]:
    """None: text goes in as it is."""
    return {}


def inputs(opened: Any) -> list[str]:
    """Names of the network's inputs, each (texts, tokens)."""
    return ["input_ids", "attention_mask"]


def forward(opened: Any, batch: dict) -> Any:
    """Logits (texts, length, vocabulary), float32."""
    return opened(**batch).logits.float()


def stream(tokenizer: Any, documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of all documents, one after another, and the number of the document that each belongs to; some may have none."""
    texts = [_as_read(tokenizer, document) + BETWEEN for document in documents]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    tokens = np.fromiter(chain.from_iterable(ids), np.int64)
    return tokens, np.repeat(np.arange(len(ids)), [len(row) for row in ids])


def _as_read(tokenizer: Any, document: str) -> str:
    """A document, or a conversation under the tokenizer's chat template. Raises InputError where it has none."""
    if not isinstance(document, Chat):
        return document
    try:
        return tokenizer.apply_chat_template(document.messages, tokenize=False)
    except Exception as error:  # of a template, which is code of the model's in Jinja's sandbox
        cause = "it has none" if not tokenizer.chat_template else " ".join(str(error).split())
        accepted = f"plain text, or a model with a chat template that takes them ({cause})"
        raise refuse("texts", document.messages, accepted) from None


def chunks(tokens: np.ndarray, length: int, first: int | None = None) -> np.ndarray:
    """(chunks, length) of a stream, end to end; first: a token that every chunk begins with, within its length."""
    own = length if first is None else length - 1
    rows = tokens[: len(tokens) // own * own].reshape(-1, own)
    return rows if first is None else np.pad(rows, ((0, 0), (1, 0)), constant_values=first)


def begins_with(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before every text (BOS), if it does."""
    ids = tokenizer("a")["input_ids"]
    return ids[0] if ids and ids[0] == tokenizer.bos_token_id else None


def batches(opened: Any, spec: Calibration) -> list[dict]:
    """Batches of `samples` chunks of `max_length` tokens from the calibration part."""
    words = reader(opened)
    return by_source(spec, lambda own: _batches(opened, _drawn(words, own)[0]))


def sample_texts(folder: Path, spec: Calibration) -> list[str]:
    """The documents that chunks are drawn from. Raises InputError for too few."""
    _drawn(tokenizer(folder), spec)
    share = spec.samples // len(corpora.names_of(spec.texts)) + 1
    return [text for name in corpora.names_of(spec.texts) for text in _documents(name, share, spec)]


def describe_sample(folder: Path, spec: Calibration) -> str:
    """One line that describes the calibration sample."""
    reader = tokenizer(folder)
    sample = _drawn(reader, spec)[0]
    documents = sample_texts(folder, spec)
    note = lengths.left_out_note(lengths.have_tokens(reader, documents, special=False).count(False))
    start = reader.decode(sample[0][:40])
    return f"{len(sample)} chunks of {spec.max_length} tokens; the first begins: {start!r}{note}"


def held_batches(opened: Any, spec: Calibration) -> list[dict]:
    """Batches of calibration text outside the sample. Raises InputError where none is left."""
    return _batches(opened, _held_back(reader(opened), spec))


def check_held_back(folder: Path, spec: Calibration) -> None:
    """Raise InputError for a sample that leaves no text to hold out."""
    _held_back(tokenizer(folder), spec)


def _held_back(reader: Any, spec: Calibration) -> np.ndarray:
    rest = _drawn(reader, spec)[1]
    if not len(rest):
        accepted = f"at most {spec.samples - 1}: a step needs text held back"
        raise refuse("calibration.samples", spec.samples, accepted)
    return rest[:HELD_BACK]


def read_ids(opened: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text as its tokenizer reads it."""
    return reader(opened)(texts)["input_ids"]


def reader(opened: Any) -> Any:
    """The model's tokenizer."""
    return tokenizer(opened.name_or_path)


def _drawn(reader: Any, spec: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """The sample of chunks and others outside it, in random order. Raises InputError for too few, and for chunks beyond the
    positions."""
    most = lengths.of_folder(reader.name_or_path)
    lengths.check_positions("calibration.max_length", spec.max_length, most)

    def pool_of(name: str, share: int) -> list[np.ndarray]:
        tokens, _ = stream(reader, _documents(name, share, spec))
        rows = chunks(tokens, spec.max_length, begins_with(reader))
        return list(rows[np.random.default_rng(spec.seed).permutation(len(rows))])

    sample, rest = corpora.drawn(
        spec.texts, spec.samples, f"chunks of {spec.max_length} tokens", pool_of
    )
    return np.array(sample), np.array(rest).reshape(-1, spec.max_length)


def _documents(name: str, share: int, spec: Calibration) -> list[str]:
    """Calibration documents with enough words for `share` chunks and those held back."""
    words = SPARE * (share + HELD_BACK) * spec.max_length  # a token is rarely more than a word
    return corpora.shortened(corpora.documents(name, "calibration"), words, spec.seed)


def _batches(opened: Any, rows: np.ndarray) -> list[dict]:
    """Batches of chunks. Raises InputError for tokens that the model does not have; a padded vocabulary is fine."""
    import torch

    count = opened.get_input_embeddings().num_embeddings
    if rows.size and rows.max() >= count:
        accepted = f"a tokenizer of at most {count} tokens; this one gave token {rows.max()}"
        raise refuse("model", opened.name_or_path, accepted)
    tokens = torch.from_numpy(rows).to(next(opened.parameters()).device)
    pieces = tokens.split(max(1, BATCH_TOKENS // rows.shape[1]))
    # Calibration looks at layers, so the head computes one token, the fewest that it can.
    keys = {"use_cache": False, "logits_to_keep": 1}
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), **keys} for ids in pieces]


def output(opened: Any, reader: Any, texts: tuple[str, ...]) -> Any:
    """Probabilities (vocabulary,) of the token after a prompt. Raises InputError for an empty one."""
    ids = reader(texts[0], return_tensors="pt")["input_ids"]
    if not ids.numel():
        raise refuse("prompt", texts[0], "at least one token")
    lengths.check_positions("prompt", ids.shape[1], lengths.positions(opened.config))
    return opened(input_ids=ids.to(opened.device)).logits[0, -1].softmax(-1).cpu()


def output_diff(reader: Any, before: Any, after: Any) -> list[tuple[str, float, float]]:
    """Probabilities of the tokens that either of two outputs ranks highest."""
    tokens = dict.fromkeys([*before.topk(LIKELY).indices.tolist(), int(after.argmax())])
    return [(repr(reader.decode([t])), float(before[t]), float(after[t])) for t in tokens]
