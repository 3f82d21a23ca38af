"""Texts and tables of one's own, named FILE, FILE::COLUMN, FILE@FAMILY or FILE::COLUMN@FAMILY.

A text file holds a document a line. Documents of a table (`kerf.data.own_tables`) may span lines.
"""

import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kerf.core.errors import InputError, one_of, refuse
from kerf.core.user_files import given_path, read_text
from kerf.data.own_tables import FORMATS, LARGEST, TABLES, signature, table

FAMILIES = ("encyclopedia", "news", "technical", "everyday", "own")
SAVED = ("state.json", "dataset_dict.json")  # of a folder that datasets wrote
OWN = "own"  # source family of a file whose user names none: nothing says that two files differ


class Source(NamedTuple):
    """Where text comes from; column: None for the usual one."""

    path: Path
    column: str | None
    family: str

    @property
    def label(self) -> str:
        """Its name in reports, which says nothing of the folders that it lies in."""
        return self.path.name + (f"::{self.column}" if self.column else "")


class Chat(str):
    """The contents of a conversation; a language model reads its messages under the tokenizer's chat template."""

    messages: list[dict]


class Documents(NamedTuple):
    """What a source holds: texts, each once; rows read, how many were empty or duplicates, and the column of a table."""

    texts: list[str]
    rows: int
    empty: int
    duplicates: int
    column: str


def lines(content: str) -> list[str]:
    """The lines of a text that are not blank."""
    # str.splitlines would also split a document at form feeds and at U+2028.
    return [line.strip() for line in re.split(r"[\r\n]+", content) if line.strip()]


def parse(parameter: str, text: str, known: str = "") -> Source:
    """The source that a user named. Raises InputError for an unknown family or no such file; known: what else is accepted."""
    if (path := given_path(text)) and path.exists():
        return Source(path, None, OWN)
    named, _, family = text.rpartition("@")
    if family.isidentifier() and (source := _located(named)):
        if family not in FAMILIES:
            raise refuse(parameter, family, f"a family: {one_of(family, FAMILIES)}")
        return source._replace(family=family)
    if source := _located(text):
        return source
    raise refuse(parameter, text, known or f"an existing file: {FORMATS}")


def _located(named: str) -> Source | None:
    """The source of FILE or FILE::COLUMN; None for no such file."""
    file, _, column = named.rpartition("::") if "::" in named else (named, "", "")
    for path, own in ((given_path(named), None), (given_path(file), column or None)):
        if path and path.exists():
            return Source(path, own, OWN)
    return None


def read(parameter: str, text: str, known: str = "") -> Documents:
    """Documents of a source. Raises InputError for what cannot be read, and for a column that the table does not have."""
    source = parse(parameter, text, known)
    if source.path.is_dir() and not any((source.path / name).is_file() for name in SAVED):
        raise refuse(parameter, text, known or FORMATS)
    return _read(parameter, source, signature(source.path))


@lru_cache(maxsize=8)
def _read(parameter: str, source: Source, _: tuple) -> Documents:
    if not source.path.is_dir() and source.path.suffix.lower() not in TABLES:
        if source.column:
            raise refuse(parameter, source.column, f"no column: a text file has none; {FORMATS}")
        content = read_text(parameter, source.path, LARGEST)
        if "\0" in content:
            raise refuse(parameter, str(source.path), "a UTF-8 text file, one document a line")
        values, rows, column = lines(content), len(content.splitlines()), ""
    else:
        content = table(parameter, source.path)
        column = _text_column(parameter, source, list(content.columns))
        values, rows = [_text(parameter, column, value) for value in content[column]], len(content)
    filled = [value for value in values if value]
    texts = list(dict.fromkeys(filled))
    return Documents(texts, rows, rows - len(filled), len(filled) - len(texts), column)


def _text_column(parameter: str, source: Source, names: list[str]) -> str:
    usual = (["text"], names[:1] if len(names) == 1 else [], ["messages"])
    for column in [source.column] if source.column else [n for group in usual for n in group]:
        if column in names:
            return column
    column = source.column or "text"
    raise refuse(parameter, column, f"a column of {source.path.name}: {one_of(column, names)}")


def _text(parameter: str, column: str, value: Any) -> str:
    """A cell as a text; a list of messages as a conversation."""
    if value is None or isinstance(value, float) and value != value:  # pandas writes NaN
        return ""
    if isinstance(value, str):
        return value.strip()
    try:
        messages = [{"role": m["role"], "content": m["content"]} for m in value]
        chat = Chat("\n\n".join(m["content"].strip() for m in messages).strip())
        if all(isinstance(m["role"], str) for m in messages):
            chat.messages = messages
            return chat
    except (TypeError, KeyError, AttributeError, IndexError):
        pass
    accepted = f"texts, or messages with role and content, in column {column}"
    raise refuse(parameter, value, accepted)


def hidden(text: str, parameters: object) -> str:
    """`text` with the labels of the files that `parameters` name, at any depth, instead of their paths: a report is published."""
    if isinstance(parameters, dict | list | tuple):
        items = parameters.values() if isinstance(parameters, dict) else parameters
        for item in items:
            text = hidden(text, item)
    elif isinstance(parameters, str) and "/" in parameters:
        with suppress(InputError):
            source = parse("texts", parameters)
            text = text.replace(parameters, source.label)
            for path in {source.path, source.path.resolve()}:
                text = text.replace(str(path), path.name)
    return text
