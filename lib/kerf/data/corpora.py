"""Real text, split by document into a calibration and an evaluation part that share nothing.

`news` and `wiki` come with Kerf (see data/README.md); any UTF-8 file with one document a line will do
in their place. A document belongs to a part by the hash of its text, so a part never depends on order
or on a seed. Human-rated pairs are used for evaluation alone.
"""

import bz2
import hashlib
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kerf.core.cache import artifact
from kerf.core.digests import sha256
from kerf.core.errors import nearest, refuse
from kerf.core.user_files import given_path, read_text
from kerf.data import downloads, segmentation
from kerf.data.segmentation import sentences

NAMES = ("news", "wiki")
LARGEST = 2**30  # bytes of a text file
PARTS = ("calibration", "evaluation")
SHINGLE = 12  # words in a row that two texts must share to count as overlapping
HELD_BACK = 128  # sentences by which a step judges itself
QUERY_WORDS, PASSAGE_WORDS = 12, 28  # of an inverse-cloze pair


def part_of(document: str) -> str:
    """Part that a document belongs to, by its text alone."""
    return PARTS[hashlib.sha256(document.encode()).digest()[0] % 2]


def documents(texts: str, part: str) -> list[str]:
    """Documents of one part of `news`, `wiki` or a text file (one document a line).

    Raises InputError for an unknown name or a file that is no UTF-8 text.
    """
    return [document for document in _all_documents(texts) if part_of(document) == part]


def _all_documents(texts: str) -> list[str]:
    if texts == "news":
        return _lines(downloads.fetch(downloads.TEXTS) / "news.txt")
    if texts == "wiki":
        return _lines(_wiki() / "wiki.txt")
    path = given_path(texts)
    if path and path.is_file():
        content = read_text("texts", path, LARGEST)
        if "\0" in content:
            raise refuse("texts", texts, "a UTF-8 text file, one document a line")
        return _split(content)
    raise refuse("texts", texts, f"a text file, or a known name: {nearest(texts, NAMES)}")


def _lines(path: Path, encoding: str = "utf-8") -> list[str]:
    return _split(path.read_text(encoding=encoding))


def _split(content: str) -> list[str]:
    # Only an end of line divides documents: str.splitlines would also divide them at form feeds and at U+2028.
    lines = content.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.strip() for line in lines if line.strip()]


def _wiki() -> Path:
    """Folder with wiki.txt: the prose paragraphs of the enwiki excerpt, one article a line."""
    import mwparserfromhell  # only for the first use: the result is kept

    packed = downloads.fetch(downloads.TEXTS) / "wiki.xml.bz2"

    def make(folder: Path) -> None:
        with bz2.open(packed) as file, open(folder / "wiki.txt", "w", encoding="utf-8") as out:
            for markup in _articles(file):
                markup = re.sub(r"<ref[^>]*/>|<ref.*?</ref>", "", markup, flags=re.S)
                lines = mwparserfromhell.parse(markup).strip_code().splitlines()
                prose = [line.strip() for line in lines if len(line) >= 200 and "|" not in line]
                out.write(" ".join(prose) + "\n")

    return artifact("wiki", {"sha256": sha256(packed)}, make, code=[Path(__file__)])


def _articles(file) -> list[str]:
    """Wiki markup of every page but redirects; the excerpt is cut off inside a page, which is dropped."""
    found = []
    try:
        for _, element in ElementTree.iterparse(file):
            if element.tag.endswith("}text") and not (element.text or "").lower().startswith(
                "#redirect"
            ):
                found.append(element.text or "")
    except ElementTree.ParseError:
        pass
    return found


def _shingles(text: str, size: int = 0) -> set[tuple[str, ...]]:
    words = segmentation.words(text)
    size = min(size or math.ceil(SHINGLE * (segmentation.letters_per_word(text) or 1)), len(words))
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _by_length(texts: Iterable[str]) -> dict[int, dict[tuple[str, ...], str]]:
    """Shingles of all texts (a shorter text is one shingle), by their number of words, and whose they are."""
    known: dict[int, dict] = {}
    for text in texts:
        for shingle in _shingles(text):
            known.setdefault(len(shingle), {})[shingle] = text
    known.pop(0, None)
    return known


def _shared(text: str, known: dict[int, dict[tuple[str, ...], str]]) -> str | None:
    """One of the texts in `known` of which 12 words in a row, or all its words, stand in `text`."""
    for size, owners in known.items():
        for shingle in _shingles(text, size) & owners.keys():
            return owners[shingle]
    return None


def calibration_sentences(texts: str, samples: int, seed: int) -> list[str]:
    """`samples` sentences drawn without repeats from the calibration part.

    Raises InputError when the part has fewer.
    """
    return _drawn(texts, samples, seed)[:samples]


def held_back(texts: str, samples: int, seed: int, count: int = HELD_BACK) -> list[str]:
    """Up to `count` sentences of the calibration part that `calibration_sentences` does not give.

    Raises InputError when fewer than a quarter of them are left.
    """
    order = _drawn(texts, samples, seed)
    if len(order) - samples < count // 4:
        most = len(order) - count
        raise refuse(
            "calibration.samples",
            samples,
            f"at most {most}: a step needs sentences held back from the sample",
        )
    return order[samples:][:count]


def _within(least: int, most: int, what: str, texts: str) -> str:
    if most >= least:
        return f"{least} to {most}, the {what} that {texts} has for it"
    return (
        f"a text with at least {least} {what} for it; {texts} has {most} in documents of its part"
    )


def _drawn(texts: str, samples: int, seed: int) -> list[str]:
    """All sentences of the calibration part in a random order. Raises InputError when there are fewer than `samples`."""
    pool = list(
        dict.fromkeys(
            s for document in documents(texts, "calibration") for s in sentences(document)
        )
    )
    if samples > len(pool) or samples < 1:
        raise refuse("calibration.samples", samples, _within(1, len(pool), "sentences", texts))
    chosen = np.random.default_rng(seed).choice(len(pool), samples, replace=False).tolist()
    rest = (
        np.random.default_rng(seed)
        .permutation(sorted(set(range(len(pool))) - set(chosen)))
        .tolist()
    )
    return [pool[index] for index in chosen + rest]


def evaluation_sentences(texts: str, count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """`count` sentences of the evaluation part, and the number of the document that each came from.

    A sentence that stands in the calibration part too (agencies repeat themselves) is left out.
    Raises InputError when the part has fewer.
    """
    calibration = (s for document in documents(texts, "calibration") for s in sentences(document))
    seen = _by_length(calibration)
    pool: dict[str, int] = {}
    for number, document in enumerate(documents(texts, "evaluation")):
        for sentence in sentences(document):
            if not _shared(sentence, seen):
                pool.setdefault(sentence, number)
    if count > len(pool) or count < 2:
        raise refuse("evaluation.sentences", count, _within(2, len(pool), "sentences", texts))
    chosen = sorted(np.random.default_rng(seed).choice(len(pool), count, replace=False))
    items = list(pool.items())
    return [items[index][0] for index in chosen], [items[index][1] for index in chosen]


def evaluation_documents(texts: str) -> list[str]:
    """Documents of the evaluation part that share no 12 words in a row with the calibration part."""
    return without_overlap(documents(texts, "evaluation"), documents(texts, "calibration"))


def without_overlap(candidates: list[str], others: list[str]) -> list[str]:
    """Those of `candidates` that share no 12 words in a row (nor a whole text of `others` that is shorter) with `others`."""
    seen = _by_length(others)
    return [text for text in candidates if not _shared(text, seen)]


def cloze_pairs(count: int, texts: str = "wiki") -> tuple[list[str], list[str], list[int]]:
    """Inverse-cloze retrieval: queries, passages, document numbers, of the evaluation part.

    All passages together are what each query is searched in, so the hard wrong answers come from the same article.
    """
    rows = stretches(texts, "evaluation")
    if count > len(rows) or count < 2:
        raise refuse("evaluation.passages", count, _within(2, len(rows), "passages", texts))
    queries, passages, numbers = zip(*rows[:count], strict=True)
    return list(queries), list(passages), list(numbers)


def stretches(texts: str, part: str) -> list[tuple[str, str, int]]:
    """Query, its passage and the number of its document, of every stretch of text of a part.

    A query is the first 12 words of a stretch, its passage the next 28 (or as many characters as make about so many words). The first stretch of every document comes first,
    then the second of every one.
    """
    rows = []
    for number, document in enumerate(documents(texts, part)):
        units, joint, per_word = segmentation.units(document)
        cut, length = (
            int(count * per_word) for count in (QUERY_WORDS, QUERY_WORDS + PASSAGE_WORDS)
        )
        for turn, start in enumerate(range(0, len(units) - length + 1, length)):
            rows.append(
                (
                    turn,
                    number,
                    *(joint.join(units[start:][own]) for own in (slice(cut), slice(cut, length))),
                )
            )
    rows.sort(key=lambda row: row[:2])
    return [(query.strip(), passage.strip(), number) for _, number, query, passage in rows]


def human_pairs() -> dict[str, tuple[list[str], list[int], list[int], list[float]]]:
    """Every human-rated pair: name -> (texts, left index, right index, score).

    lee: 1,225 pairs of 50 news items; wordsim: 353 and simlex: 999 pairs of words.
    """
    folder = downloads.fetch(downloads.TEXTS)
    items = _lines(folder / "lee.txt", "latin-1")
    scores = np.loadtxt(folder / "lee_similarities.txt")
    left, right = np.triu_indices(len(items), 1)  # only the upper triangle is filled
    found = {"lee": (items, left.tolist(), right.tolist(), scores[left, right].tolist())}
    for name, file in (("wordsim", "wordsim353.tsv"), ("simlex", "simlex999.tsv")):
        rows = [line.split("\t") for line in _lines(folder / file) if not line.startswith("#")]
        number = {
            word: index
            for index, word in enumerate(dict.fromkeys(w for row in rows for w in row[:2]))
        }
        found[name] = (
            list(number),
            [number[row[0]] for row in rows],
            [number[row[1]] for row in rows],
            [float(row[2]) for row in rows],
        )
    return found


def check_overlap(calibration: list[str], evaluation: list[str]) -> None:
    """Refuse calibration text of which 12 words in a row (or a whole shorter text) stand in evaluation text."""
    known = _by_length(calibration)
    for other in evaluation:
        if text := _shared(other, known):
            raise refuse(
                "calibration.texts",
                text,
                "text that does not overlap the evaluation text; this one does",
            )


def digest(texts: str) -> str:
    """sha256 of the documents of a text source, for keys and manifests."""
    joined = "\n".join(_all_documents(os.fspath(texts)))
    return hashlib.sha256(joined.encode()).hexdigest()
