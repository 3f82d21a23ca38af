"""Texts as the tokens that a model can read: up to its last position, without those that have no token."""

import re
from itertools import compress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from kerf.core.errors import refuse
from kerf.models.families import detection
from kerf.models.families.opening import from_folder, open_weights
from kerf.models.model_files import module_folders

# Architectures whose positions begin after the number of the padding token, in a table of max_position_embeddings rows.
AFTER_PADDING = re.compile(
    "(xlm-)?roberta|xlm-roberta-xl|roberta-prelayernorm|camembert|mpnet|longformer|data2vec-text"
    "|ibert|xmod|luke|layoutlmv3|lilt|esm|markuplm"
)


def positions(config: Any) -> int | None:
    """Tokens that a model of transformers has positions for; None where nothing in its configuration limits them."""
    text = config.get_text_config()
    count = getattr(text, "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1 or getattr(text, "alibi", False):
        return None
    if AFTER_PADDING.fullmatch(text.model_type):
        count -= (1 if text.model_type == "mpnet" else text.pad_token_id or 0) + 1
    return count


def inner(folder: Path) -> Path:
    """Where configuration and tokenizer lie: in `folder`, or in that of the first module of sentence-transformers."""
    return module_folders(folder)[0]


def of_folder(folder: str | Path) -> int | None:
    """`positions` of the model in `folder`."""
    folder = inner(Path(folder))
    return None if detection.is_static(folder) else positions(from_folder("AutoConfig", folder))


def of_opened(opened: Any) -> int | None:
    """`positions` of an opened model of sentence-transformers."""
    config = opened.config
    return positions(config) if config is not None else None


def tokenizer(folder: str | Path) -> Any:
    """The tokenizer of the model in `folder`, of any family."""
    folder = inner(Path(folder))
    if detection.is_static(folder):
        return as_transformers(Tokenizer.from_file(str(folder / "tokenizer.json")))
    return from_folder("AutoTokenizer", folder)


def as_transformers(tokenizer: Any) -> Any:
    """The tokenizer of an opened model as transformers has it; that of static embeddings adds no special tokens."""
    if not isinstance(tokenizer, Tokenizer):
        return tokenizer
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.post_processor = None
    plain.no_truncation()
    return PreTrainedTokenizerFast(tokenizer_object=plain, model_input_names=["input_ids"])


def check_positions(parameter: str, tokens: int, most: int | None) -> None:
    """Refuse a `parameter` of more tokens than `most`, as `positions` returns them."""
    if most is not None and tokens > most:
        raise refuse(parameter, tokens, f"at most {most}, the positions of this model")


def open_bounded(class_name: str, folder: Path, device: str, **options: Any) -> Any:
    """A model of sentence-transformers in float32 that truncates texts at its positions, whatever else its files configure."""
    loading = {"use_safetensors": True, "dtype": "float32"}
    opened = open_weights(class_name, folder, device=device, model_kwargs=loading, **options)
    most = of_opened(opened)
    if most is not None and (opened.max_seq_length is None or opened.max_seq_length > most):
        opened.max_seq_length = most
    return opened


def truncation(opened: Any, max_length: int) -> dict[str, Any]:
    """Options of a tokenizer that cut text at max_length tokens, or where the model itself cuts it."""
    return {"truncation": True, "max_length": min(max_length, opened.max_seq_length or max_length)}


def tokenized(
    opened: Any, texts: list, batch_size: int, max_length: int, prompt: str | None = None
) -> list[dict]:
    """Batches (input_ids, attention_mask, ... of shape (batch, length)) of texts or pairs that have a token, shortest first, as
    the model itself reads them behind a prompt, on its device. Raises InputError where no text has a token."""
    device = next(opened.parameters()).device
    known = readable(as_transformers(opened.tokenizer), texts)
    ordered = sorted(known, key=lambda text: len("".join(text)))
    options = {"processing_kwargs": {"text": truncation(opened, max_length)}}
    pieces = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    batches = [opened.preprocess(piece, prompt=prompt, **options) for piece in pieces]
    return [{k: v.to(device) for k, v in b.items() if hasattr(v, "to")} for b in batches]


def ids_of(features: dict) -> list[int]:
    """The token ids in what a model's `preprocess` makes of one text, without padding."""
    ids = features["input_ids"]
    return (ids[features["attention_mask"] > 0] if "attention_mask" in features else ids).tolist()


def have_tokens(tokenizer: Any, texts: list, special: bool = True) -> list[bool]:
    """Whether each of the texts or pairs has any token (special: one that surrounds every text counts); those without a known
    character may have none."""
    if not texts or special and tokenizer("")["input_ids"]:
        return [True] * len(texts)
    ids = tokenizer(*_columns(texts), add_special_tokens=special, verbose=False)["input_ids"]
    return [bool(row) for row in ids]


def _columns(texts: list) -> list[list[str]]:
    """Arguments of a tokenizer: the texts, or the first and the second texts of pairs."""
    return [texts] if isinstance(texts[0], str) else [list(c) for c in zip(*texts, strict=True)]


def readable(tokenizer: Any, texts: list) -> list:
    """The texts or pairs that have any token. Raises InputError where none is left."""
    mask = have_tokens(tokenizer, texts)
    if texts and not any(mask):
        accepted = f"text that the model's tokenizer knows; none of {len(texts)} has any token"
        raise refuse("calibration.texts", texts[0], accepted)
    return list(compress(texts, mask))


def rows_with_tokens(tokenizer: Any, parameter: str, *columns: list) -> list[list]:
    """Columns of texts, and of numbers beside them, without rows in which a text has no token. Raises InputError for fewer
    than two rows left."""
    masks = [have_tokens(tokenizer, column) for column in columns if isinstance(column[0], str)]
    rows = [all(row) for row in zip(*masks, strict=True)]
    check_readable(parameter, sum(rows), len(rows))
    return [list(compress(column, rows)) for column in columns]


def check_readable(parameter: str, count: int, asked: int) -> None:
    """Refuse texts of which fewer than two have a token."""
    if count < 2:
        accepted = f"text that the model's tokenizer knows; {count} of {asked} have any token"
        raise refuse(parameter, asked, accepted)


def left_out_note(count: int) -> str:
    """The end of a line about text of which `count` were left out."""
    return f"; {count} without any token left out" if count else ""
