"""How many tokens a model can read at once, and texts that have none."""

from pathlib import Path

from kerf.core.errors import refuse
from kerf.models.families.opening import from_folder

# Families whose positions begin after the number of the padding token, in a table of max_position_embeddings rows.
AFTER_PADDING = frozenset(
    [
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "roberta-prelayernorm",
        "camembert",
        "mpnet",
        "longformer",
        "data2vec-text",
        "ibert",
        "xmod",
        "luke",
        "layoutlmv3",
        "lilt",
        "esm",
        "markuplm",
    ]
)


def positions(config) -> int | None:
    """Tokens that a model of transformers has positions for; None where nothing in its configuration limits them."""
    text = config.get_text_config()
    count = getattr(text, "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1 or getattr(text, "alibi", False):
        return None
    if text.model_type in AFTER_PADDING:
        count -= (1 if text.model_type == "mpnet" else text.pad_token_id or 0) + 1
    return count


def of_folder(folder: str | Path) -> int | None:
    """`positions` of the model in `folder`."""
    return positions(from_folder("AutoConfig", inner(Path(folder))))


def inner(folder: Path) -> Path:
    """Where configuration and tokenizer lie: in `folder`, or in that of the first module of sentence-transformers."""
    import json

    if (folder / "config.json").is_file() or not (folder / "modules.json").is_file():
        return folder
    return folder / json.loads((folder / "modules.json").read_text())[0]["path"]


def check(parameter: str, tokens: int, folder: str | Path) -> None:
    """Refuse a `parameter` of more tokens than the model in `folder` has positions for."""
    check_positions(parameter, tokens, of_folder(folder))


def check_positions(parameter: str, tokens: int, most: int | None) -> None:
    """Refuse a `parameter` of more tokens than `most`, as `positions` gives them."""
    if most is not None and tokens > most:
        raise refuse(parameter, tokens, f"at most {most}, the positions of this model")


def bounded(opened):
    """An opened model of sentence-transformers that cuts texts at its positions, whatever else its files say."""
    most = positions(opened[0].auto_model.config)
    if most is not None and (opened.max_seq_length is None or opened.max_seq_length > most):
        opened.max_seq_length = most
    return opened


def shorter(opened, max_length: int) -> int:
    """Tokens at which calibration text is cut: max_length, or where the model itself cuts."""
    return min(max_length, opened.max_seq_length or max_length)


def kept(tokenizer, asked: list) -> list:
    """The texts or pairs that have any token. Raises InputError where none is left."""
    found = [
        each
        for each, any_token in zip(asked, with_tokens(tokenizer, asked), strict=True)
        if any_token
    ]
    if asked and not found:
        raise refuse(
            "calibration.texts",
            asked[0],
            f"text that the model's tokenizer knows; none of {len(asked)} has any token",
        )
    return found


def left_out(tokenizer, asked: list, special: bool = True) -> str:
    """What a line about a sample says of texts that have no token; nothing where there are none."""
    return said(with_tokens(tokenizer, asked, special).count(False))


def said(count: int) -> str:
    """The end of a line about text of which `count` were left out."""
    return f"; {count} without any token left out" if count else ""


def known(tokenizer, parameter: str, *columns: list) -> list[list]:
    """Columns of texts, and of numbers beside them, without rows in which a text has no token. Raises InputError for fewer than two left."""
    good = [
        all(row)
        for row in zip(
            *(with_tokens(tokenizer, each) for each in columns if isinstance(each[0], str)),
            strict=True,
        )
    ]
    if sum(good) < 2:
        raise refuse(
            parameter,
            len(good),
            f"text that the model's tokenizer knows; {sum(good)} of {len(good)} have any token",
        )
    return [[value for value, kept in zip(each, good, strict=True) if kept] for each in columns]


def with_tokens(tokenizer, asked: list, special: bool = True) -> list[bool]:
    """Which of the texts, or pairs of texts that stand together, have any token: those of no known character may have none.

    special: tokens that stand around every text count.
    """
    if not asked or special and tokenizer("")["input_ids"]:
        return [True] * len(asked)
    given = (asked,) if isinstance(asked[0], str) else map(list, zip(*asked, strict=True))
    return [
        bool(ids)
        for ids in tokenizer(*given, add_special_tokens=special, verbose=False)["input_ids"]
    ]
