"""One tokenizer for a model and its kernels: what transformers makes of all the model's files, written as one file.

A kernel reads tokenizer.json alone. The model itself is opened with tokenizer_config.json, special_tokens_map.json,
sentence_bert_config.json and others beside it, which may say something else about case, accents or special tokens.
"""

import json
from pathlib import Path

import numpy as np

from kerf.core.errors import refuse

FILE, STEP = (
    "tokenizer.json",
    8,
)  # tokens: lengths of batches are multiples of it, so that kernels see few shapes
ODD = (
    "The Capital of FRANCE is Paris.",
    "café naïve Ångström ÇA İstanbul straße ﬁne",
    "你好，世界。 こんにちは 안녕하세요",
    "emoji 👩‍👩‍👧 and 🏳️‍🌈 done",
    "  two  spaces,\ttab\nline\r\n end ",
    "",
    " ",
    "a",
    "don't, won't; e-mail@x.org #1,234.56%",
    "Ещё один текст",
    "مرحبا بالعالم",
    "x\u200by\u00adz\ufeff\x00 control",
    "word " * 5000,
    "Wort" * 3000,
)


def write(opened, folder: Path) -> dict:
    """Write the tokenizer of an opened model as tokenizer.json. Returns what a kernel has to know beside it, for the card:
    max_length (tokens, or None), cut (the side), pad (a token) and plain (special tokens in a text are text)."""
    from tokenizers import Tokenizer

    reader = opened.tokenizer
    if not getattr(reader, "is_fast", False):
        raise refuse(
            "model",
            opened.model_card_data.model_id or type(reader).__name__,
            "a fast tokenizer for a real kernel",
        )
    alone = Tokenizer.from_str(reader.backend_tokenizer.to_str())
    alone.no_truncation()
    alone.no_padding()
    alone.save(str(folder / FILE))
    longest = opened.max_seq_length
    return {
        "max_length": longest if longest and longest < 10**6 else None,
        "cut": reader.truncation_side,
        "pad": reader.pad_token_id or 0,
        "plain": reader.split_special_tokens,
    }


def read(folder: Path, told: dict):
    """The tokenizer of a candidate, which cuts texts and pads nothing; told: what `write` returned. Raises InputError for a damaged one."""
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_file(str(folder / FILE))
    except Exception as error:  # the library raises no kind of its own
        raise refuse(
            "path", str(folder), f"a {FILE} that tokenizers opens ({str(error)[:160]})"
        ) from None
    found.no_padding()
    found.no_truncation()
    found.encode_special_tokens = told["plain"]
    if told["max_length"]:
        found.enable_truncation(told["max_length"], direction=told["cut"])
    return found


def settings_of(folder: Path, card: dict) -> dict:
    """What `write` returned for a candidate; for one of before it was kept, what was assumed then."""
    if "tokens" in card:
        return card["tokens"]
    positions = _read(folder / "config.json").get("max_position_embeddings") or 512
    asked = _read(folder / "sentence_bert_config.json").get("max_seq_length") or _read(
        folder / "tokenizer_config.json"
    ).get("model_max_length")
    return {
        "max_length": min(positions, asked or positions),
        "cut": "right",
        "pad": 0,
        "plain": False,
    }


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def padded(
    tokens: list[list[int]], pad: int = 0, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers and mask, int64 (texts, tokens), the length a multiple of STEP where that is no more than `most`."""
    longest = max(map(len, tokens))
    length = -(-max(longest, 1) // STEP) * STEP
    length = max(min(length, most or length), longest)
    ids, mask = (
        np.full((len(tokens), length), pad, np.int64),
        np.zeros((len(tokens), length), np.int64),
    )
    for row, each in enumerate(tokens):
        ids[row, : len(each)] = each
        mask[row, : len(each)] = 1
    return ids, mask


def check(opened, tokenizer) -> None:
    """Refuse a model that does not give the tokens of its kernel's tokenizer for the texts of ODD, or for pairs of them."""
    from kerf.models import families

    pairs = families.of_opened(opened) is families.cross_encoder
    special = " and ".join(map(str, opened.tokenizer.all_special_tokens[:6]))
    texts = [*ODD, f"in the text: {special}."]
    asked = list(zip(texts, texts[::-1], strict=True)) if pairs else texts
    for text in asked:
        found = tokenizer.encode(*text) if pairs else tokenizer.encode(text)
        if found.ids and found.ids != (wanted := _of_model(opened, text)):
            said = f"a model whose texts are tokenized by its tokenizer alone; {str(text)[:40]!r} is {len(wanted)} tokens for it"
            raise refuse(
                "model",
                str(opened[0].tokenizer.name_or_path),
                f"{said}, and {len(found.ids)} other ones for a real kernel",
            )


def _of_model(opened, text) -> list[int]:
    """Tokens that a model itself makes of a text or pair."""
    features = opened.preprocess([text])
    return features["input_ids"][0][features["attention_mask"][0].bool()].tolist()
