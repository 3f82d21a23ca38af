"""The tokenizer of a kernel: all that transformers reads of a model's tokenizer, written as one tokenizer.json.

The model itself is opened with further files, which may change case, accents or special tokens: `check` compares the two.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from tokenizers import Tokenizer

from kerf.core.errors import refuse
from kerf.models import families

Ids = list[list[int]]  # token ids of each text
FILE = "tokenizer.json"
STEP = 8  # lengths of batches are multiples of it, in tokens, so that kernels see few shapes
PROBES = (
    "The Capital of FRANCE is Paris.",
    "café naïve Ångström ÇA İstanbul straße ﬁne",
    "你好，世界。 こんにちは 안녕하세요",
    "emoji 👩‍👩‍👧 and 🏳️‍🌈 done",
    *("  two  spaces,\ttab\nline\r\n end ", "", " ", "a"),
    "don't, won't; e-mail@x.org #1,234.56%",
    *("Ещё один текст", "مرحبا بالعالم", "x\u200by\u00adz\ufeff\x00 control"),
    *("word " * 5000, "Wort" * 3000),
)


class Settings(TypedDict):
    """What a kernel needs beside tokenizer.json; part of the candidate's manifest."""

    max_length: int | None  # in tokens; None: no limit
    cut: str  # the side on which longer texts are truncated
    pad: int  # the padding token
    plain: bool  # special tokens in a text are ordinary text


def write(opened: Any, folder: Path) -> Settings:
    """Write the tokenizer of an opened model as tokenizer.json. Raises InputError for a model without a fast tokenizer."""
    source = opened.tokenizer
    if not getattr(source, "is_fast", False):
        name = opened.model_card_data.model_id or type(source).__name__
        raise refuse("model", name, "a fast tokenizer for a real kernel")
    if any(getattr(module, "include_prompt", True) is False for module in opened):
        accepted = "a model whose pooling counts its prompts, for a real kernel"
        raise refuse("model", str(source.name_or_path), accepted)
    tokenizer = Tokenizer.from_str(source.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / FILE))
    longest = opened.max_seq_length
    return {
        "max_length": longest if longest and longest < 10**6 else None,
        "cut": source.truncation_side,
        "pad": source.pad_token_id or 0,
        "plain": source.split_special_tokens,
    }


def read(folder: Path, settings: Settings) -> Tokenizer:
    """The tokenizer of a candidate, which truncates and never pads. Raises InputError for a damaged file."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / FILE))
    except Exception as error:  # the library raises Exception itself
        accepted = f"a {FILE} that tokenizers opens ({str(error)[:160]})"
        raise refuse("path", str(folder), accepted) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = settings["plain"]
    if settings["max_length"]:
        tokenizer.enable_truncation(settings["max_length"], direction=settings["cut"])
    return tokenizer


def settings_of(folder: Path, card: dict) -> Settings:
    """The settings in a candidate's manifest, or, for a manifest that has none, those that were assumed before."""
    if "tokens" in card:
        return card["tokens"]
    names = ("config.json", "sentence_bert_config.json", "tokenizer_config.json")
    texts = [(folder / name).read_text() if (folder / name).is_file() else "{}" for name in names]
    config, encoder, tokenizer = map(json.loads, texts)
    positions = config.get("max_position_embeddings") or 512
    length = encoder.get("max_seq_length") or tokenizer.get("model_max_length") or positions
    return {"max_length": min(positions, length), "cut": "right", "pad": 0, "plain": False}


def batch(
    tokens: Ids, pad: int = 0, most: int | None = None, types: Ids | None = None
) -> dict[str, np.ndarray]:
    """The inputs of a kernel, int64 (texts, tokens) each, padded to a multiple of STEP unless that exceeds `most`.

    types: which text of a pair each token belongs to; None: all to the first.
    """
    longest = max(map(len, tokens))
    length = -(-max(longest, 1) // STEP) * STEP
    length = max(min(length, most or length), longest)
    ids = np.full((len(tokens), length), pad, np.int64)
    mask, type_ids = np.zeros_like(ids), np.zeros_like(ids)
    for row, text in enumerate(tokens):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
        if types:
            type_ids[row, : len(text)] = types[row]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": type_ids}


def check(opened: Any, tokenizer: Tokenizer) -> None:
    """Refuse a model whose own tokens differ from those of its kernel's tokenizer on PROBES, behind each of an encoder's prompts,
    for a reranker on pairs of them."""
    special = " and ".join(map(str, opened.tokenizer.all_special_tokens[:6]))
    texts = [*PROBES, f"in the text: {special}."]
    pairs = families.of_opened(opened) is families.cross_encoder
    tasks = (None,) if pairs else (None, "query", "document")
    for task, probe in product(tasks, zip(texts, texts[::-1] if pairs else texts, strict=True)):
        prompt = opened.prompts[task] if task else ""
        ids = tokenizer.encode(*probe if pairs else (prompt + probe[0],)).ids
        if not ids:
            continue
        text = probe if pairs else probe[0]
        features = opened.preprocess([text], prompt=prompt, task=task)
        expected = features["input_ids"][0][features["attention_mask"][0].bool()].tolist()
        if ids != expected:
            accepted = "a model whose texts are tokenized by its tokenizer alone"
            counts = f"{len(expected)} tokens for it, and {len(ids)} other ones for a real kernel"
            name = str(opened[0].tokenizer.name_or_path)
            raise refuse("model", name, f"{accepted}; {str(text)[:40]!r} is {counts}")
