"""Causal language models: tokens in, the probability of the next one out, opened by transformers.

Text is a stream of documents cut into chunks of equal length, as language models are calibrated and
measured; no chunk is padded.
"""

from pathlib import Path

import numpy as np

from kerf.config import Calibration
from kerf.core.errors import refuse
from kerf.data import corpora
from kerf.models.families import lengths
from kerf.models.families.opening import from_folder, quiet
from kerf.models.tensor_check import refuse_incomplete

NAME, CALLED = "causal", "a causal language model"
READS = ("texts", "passages", "num_chunks", "seq_len", "restored")  # keys of `evaluation`
EVALUATION = "kerf.evaluate.causal"
# Classes of causal language models that do not end in ForCausalLM.
OTHERS = ("GPT2LMHeadModel", "OpenAIGPTLMHeadModel", "CTRLLMHeadModel")

BATCH_TOKENS = 1024  # of a batch of chunks
HELD_BACK = 16  # chunks by which a step judges itself
BETWEEN = "\n\n"  # documents
EXAMPLES = ("The capital of France is the city of",)  # what `answer` takes
LIKELY = 5  # tokens that `told` tells of


def takes(architecture: str, folder: Path) -> bool:
    """Classes with a head for the next token, where sentence-transformers does not make an encoder of them."""
    return (
        architecture.endswith(("ForCausalLM", *OTHERS)) and not (folder / "modules.json").is_file()
    )


def opens_as(opened) -> bool:
    """Models of transformers themselves."""
    from transformers import PreTrainedModel

    return isinstance(opened, PreTrainedModel)


def open_folder(folder: Path, device: str = "cpu"):
    """AutoModelForCausalLM without progress bars, network or remote code, in float32 on `device`."""
    return _opened(folder, device, "AutoModelForCausalLM", use_safetensors=True)


def with_weights(folder: Path, class_name: str, weights: dict, device: str = "cpu"):
    """The model of `folder` with `weights`."""
    opened = _opened(
        folder, device, class_name, config=from_folder("AutoConfig", folder), state_dict=weights
    )
    if Path(
        folder, "generation_config.json"
    ).is_file():  # which transformers reads beside weights in a file alone
        opened.generation_config = from_folder("GenerationConfig", folder)
    return opened


@refuse_incomplete
def _opened(folder: Path, device: str, class_name: str, **options):
    quiet()
    opened = from_folder(class_name, folder, dtype="float32", **options)
    opened.name_or_path = str(folder)  # of a candidate too: its tokenizer lies there
    return opened.to(device).eval()


def network(opened):
    """The model itself, head included."""
    return opened


def tokenizer(folder: str | Path):
    """The tokenizer in `folder`."""
    return from_folder("AutoTokenizer", folder)


def stream(tokenizer, documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of all documents, one after another, and the number of the document that each belongs to; some may have none."""
    ids = (
        tokenizer([document + BETWEEN for document in documents], add_special_tokens=False)[
            "input_ids"
        ]
        if documents
        else []
    )
    return np.array([token for each in ids for token in each], np.int64), np.repeat(
        np.arange(len(ids)), [len(each) for each in ids]
    )


def chunks(tokens: np.ndarray, length: int, first: int | None = None) -> np.ndarray:
    """(chunks, length) of a stream, end to end; first: a token that every chunk begins with, in its length."""
    own = length if first is None else length - 1
    found = tokens[: len(tokens) // own * own].reshape(-1, own)
    return found if first is None else np.concatenate([np.full((len(found), 1), first), found], 1)


def begins_with(tokenizer) -> int | None:
    """The token that the tokenizer puts before every text (BOS), if it does."""
    ids = tokenizer("a")["input_ids"]
    return ids[0] if ids and ids[0] == tokenizer.bos_token_id else None


def batches(opened, spec: Calibration) -> list[dict]:
    """Batches of `samples` chunks of `max_length` tokens from the calibration part. Raises InputError for too few."""
    return _batches(_drawn(reader(opened), spec)[: spec.samples], opened)


def sample_texts(folder: Path, spec: Calibration) -> list[str]:
    """The calibration text, to be held against the evaluation text. Raises InputError for too few chunks."""
    _drawn(tokenizer(folder), spec)
    return corpora.documents(spec.texts, "calibration")


def describe_sample(folder: Path, spec: Calibration) -> str:
    """What the calibration sample is, in a line for a reader."""
    reader = tokenizer(folder)
    sample = _drawn(reader, spec)[: spec.samples]
    note = lengths.left_out(reader, corpora.documents(spec.texts, "calibration"), special=False)
    return f"{len(sample)} chunks of {spec.max_length} tokens; the first begins: {reader.decode(sample[0][:40])!r}{note}"


def held_batches(opened, spec: Calibration) -> list[dict]:
    """Batches of chunks of the calibration part that are not in the sample. Raises InputError when none is left."""
    return _batches(_held_back(reader(opened), spec), opened)


def check_held_back(folder: Path, spec: Calibration) -> None:
    """Refuse a sample that leaves no chunk to hold back."""
    _held_back(tokenizer(folder), spec)


def _held_back(reader, spec: Calibration) -> np.ndarray:
    rest = _drawn(reader, spec)[spec.samples :]
    if not len(rest):
        raise refuse(
            "calibration.samples",
            spec.samples,
            f"at most {spec.samples - 1}: a step needs text held back",
        )
    return rest[:HELD_BACK]


def reader(opened):
    """The tokenizer that lies beside the model."""
    return tokenizer(opened.name_or_path)


def _drawn(reader, spec: Calibration) -> np.ndarray:
    """All chunks of the calibration part in a random order. Raises InputError for fewer than asked for, and for longer ones than the model reads."""
    lengths.check("calibration.max_length", spec.max_length, reader.name_or_path)
    tokens, _ = stream(reader, corpora.documents(spec.texts, "calibration"))
    found = chunks(tokens, spec.max_length, begins_with(reader))
    if spec.samples > len(found):
        accepted = f"1 to {len(found)}, the chunks of {spec.max_length} tokens that {spec.texts} has for it"
        raise refuse("calibration.samples", spec.samples, accepted)
    return found[np.random.default_rng(spec.seed).permutation(len(found))]


def check_vocabulary(opened, found: np.ndarray) -> None:
    """Refuse a tokenizer that gives tokens which the model does not have; a padded vocabulary is fine."""
    rows = opened.get_input_embeddings().num_embeddings
    if found.size and int(found.max()) >= rows:
        accepted = f"a tokenizer of at most {rows} tokens; this one gave token {int(found.max())}"
        raise refuse("model", opened.name_or_path, accepted)


def _batches(found: np.ndarray, opened) -> list[dict]:
    import torch

    check_vocabulary(opened, found)
    size = max(1, BATCH_TOKENS // found.shape[1])
    pieces = (torch.from_numpy(found[start : start + size]) for start in range(0, len(found), size))
    # Calibration looks at layers, so the head is asked for one token, the fewest it can give.
    keys = {"use_cache": False, "logits_to_keep": 1}
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), **keys} for ids in pieces]


def output(opened, reader, texts: tuple[str]):
    """Probabilities (tokens,) of what comes after a prompt. Raises InputError for an empty one."""
    ids = reader(texts[0], return_tensors="pt")["input_ids"]
    if not ids.numel():
        raise refuse("prompt", texts[0], "at least one token")
    lengths.check_positions("prompt", ids.shape[1], lengths.positions(opened.config))
    return opened(input_ids=ids.to(opened.device)).logits[0, -1].softmax(-1).cpu()


def output_diff(reader, before, after) -> list[tuple[str, float, float]]:
    """Probabilities of the tokens that either of two answers finds most likely."""
    tokens = dict.fromkeys([*before.topk(LIKELY).indices.tolist(), int(after.argmax())])
    return [
        (repr(reader.decode([token])), float(before[token]), float(after[token]))
        for token in tokens
    ]
