"""The text sources that come with Kerf, as lists of documents, and the source family that each belongs to.

A source family is where text comes from: encyclopedia, news, technical prose or everyday life. What is measured on one family
says little about another, so two sources of a family count as one.
"""

import ast
import bz2
import inspect
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from kerf.core.cache import artifact
from kerf.core.digests import sha256
from kerf.data import downloads
from kerf.data.own_files import lines

PACKAGES = ("numpy", "scipy", "pandas", "scikit-learn", "torch")  # of the source `docs`
TITLE_END = " -- "  # between an article's title and its text, in `questions`
_ROLE = re.compile(r":[\w:]+:`~?\.?([^`<]*?)(?:\s*<[^>]*>)?`")  # Sphinx, as in :func:`name`
_NO_PROSE = re.compile(r"\s|>>>|\.\. |[*|+-] |[-=~^]{3,}")  # at the start of a line of a docstring


class TextSource(NamedTuple):
    """A bundled source: its family and a function that returns its documents."""

    family: str
    documents: Callable[[], list[str]]


class Question(NamedTuple):
    """A question of a search engine's user, and the passage of the encyclopedia's article that answers it."""

    article: str
    question: str
    passage: str


class Docstring(NamedTuple):
    """The prose of a docstring: its first paragraph, and the others joined."""

    module: str
    summary: str
    rest: str


def _news() -> list[str]:
    return lines((downloads.fetch(downloads.TEXTS) / "news.txt").read_text("utf-8"))


def _wiki() -> list[str]:
    """The prose paragraphs of the enwiki excerpt without redirects, one article each."""
    packed = downloads.fetch(downloads.TEXTS) / "wiki.xml.bz2"

    def make(folder: Path) -> None:
        import mwparserfromhell  # needed once: the result is cached

        with (
            bz2.open(packed) as file,
            open(folder / "wiki.txt", "w", encoding="utf-8") as out,
            suppress(ElementTree.ParseError),  # the excerpt ends inside a page, which is dropped
        ):
            for _, element in ElementTree.iterparse(file):
                markup = element.text or ""
                if not element.tag.endswith("}text") or markup.lower().startswith("#redirect"):
                    continue
                markup = re.sub(r"<ref[^>]*/>|<ref.*?</ref>", "", markup, flags=re.S)
                stripped = mwparserfromhell.parse(markup).strip_code().splitlines()
                prose = [line.strip() for line in stripped if len(line) >= 200 and "|" not in line]
                out.write(" ".join(prose) + "\n")

    folder = artifact("wiki", {"sha256": sha256(packed)}, make, code=[Path(__file__)])
    return lines((folder / "wiki.txt").read_text("utf-8"))


def questions() -> list[Question]:
    """All questions of BoolQ with their passages."""
    rows = _json_lines(downloads.QUESTIONS, "questions.jsonl")
    return [
        Question(row["passage"].partition(TITLE_END)[0], row["question"], row["passage"])
        for row in rows
    ]


@cache
def articles() -> dict[str, list[Question]]:
    """The documents of `questions`, the passages of an article without their title each, and their questions."""
    return _by_document(questions(), lambda row: row.passage.partition(TITLE_END)[2])


def docstrings() -> list[Docstring]:
    """The prose of the public docstrings of PACKAGES as they are installed, without parameters, lists and formulas."""
    versions = {name: metadata.version(name) for name in PACKAGES}

    def make(folder: Path) -> None:
        rows = [row for name in PACKAGES for row in _of_package(name)]
        (folder / "docs.json").write_text(json.dumps(rows), encoding="utf-8")

    folder = artifact("docs", versions, make, code=[Path(__file__)], anywhere=True)
    return [Docstring(*row) for row in json.loads((folder / "docs.json").read_text("utf-8"))]


def _of_package(name: str) -> Iterator[Docstring]:
    for file in metadata.files(name) or []:
        folders = file.parts[:-1]
        if file.suffix != ".py" or any(part.startswith("_") or "test" in part for part in folders):
            continue
        try:
            tree = ast.parse(Path(str(file.locate())).read_text("utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            paragraphs = _prose(ast.get_docstring(node, clean=False) or "")
            if paragraphs:
                yield Docstring(str(file), paragraphs[0], " ".join(paragraphs[1:]))


def _prose(docstring: str) -> list[str]:
    """Paragraphs of whole sentences at the docstring's own indentation."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if any(map(_NO_PROSE.match, paragraph.splitlines())):
            continue
        text = " ".join(_ROLE.sub(r"\1", paragraph).replace("`", "").split())
        if len(text) >= 20 and text[-1] in ".:!?" and not re.search(r"[$\\]", text):
            paragraphs.append(text)
    return paragraphs


@cache
def modules() -> dict[str, list[Docstring]]:
    """The documents of `docs`, the docstrings of a module each, and these docstrings."""
    return _by_document(docstrings(), lambda row: f"{row.summary} {row.rest}")


def _by_document(rows: list, text_of: Callable[[Any], str]) -> dict[str, list]:
    """Rows by the text of their document, which the first column names: their texts, each once."""
    groups: dict[str, list] = {}
    for row in rows:
        groups.setdefault(row[0], []).append(row)
    return {
        " ".join(" ".join(dict.fromkeys(map(text_of, own))).split()): own for own in groups.values()
    }


def _everyday() -> list[str]:
    """Situations and answers of PIQA, SIQA and CommonsenseQA, one item each."""
    names = ("piqa", "siqa", "commonsenseqa")
    return list(dict.fromkeys(situation(row) for name in names for row in task_rows(name)))


def task_rows(name: str) -> list[dict]:
    """Rows of a task: question, options, answer, and a passage where the task has one."""
    return _json_lines(downloads.QUESTIONS, f"{name}.jsonl")


def situation(row: dict) -> str:
    """A task's row as a text: what happens, the question, and the right answer."""
    parts = (row.get("passage", ""), row["question"], row["answer"].partition(". ")[2])
    return " ".join(" ".join(parts).split())


def bbc() -> list[tuple[str, str]]:
    """Text and class of every article of BBC News."""
    rows = _json_lines(downloads.BBC, "bbc.jsonl")
    return [(" ".join(row["text"].split()), row["file"].partition("/")[0]) for row in rows]


def _json_lines(source: downloads.Source, file: str) -> list[dict]:
    return [json.loads(line) for line in lines((downloads.fetch(source) / file).read_text("utf-8"))]


def _bbc() -> list[str]:
    return list(dict.fromkeys(text for text, _ in bbc()))


TEXTS = {
    "news": TextSource("news", cache(_news)),
    "wiki": TextSource("encyclopedia", cache(_wiki)),
    "questions": TextSource("encyclopedia", lambda: list(articles())),
    "docs": TextSource("technical", lambda: list(modules())),
    "everyday": TextSource("everyday", cache(_everyday)),
    "bbc": TextSource("news", cache(_bbc)),
}
