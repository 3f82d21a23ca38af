"""Real text, split by document into a calibration and an evaluation part that share nothing.

`news` and `wiki` come with Kerf (see data/README.md); a UTF-8 file with one document per line serves as well.
A hash of its text assigns a document to a part, whatever the order. Human-rated pairs are used for evaluation only.
"""

import bz2
import hashlib
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from contextlib import suppress
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
OVERLAP_WORDS = 12  # consecutive words that two texts must share to count as overlapping
HELD_BACK = 128  # sentences that a step is evaluated on while it runs
QUERY_WORDS, PASSAGE_WORDS = 12, 28  # of an inverse-cloze pair

Shingle = tuple[str, ...]  # consecutive words


def part_of(document: str) -> str:
    """Part that a document belongs to, by a hash of its text."""
    return PARTS[hashlib.sha256(document.encode()).digest()[0] % 2]


def documents(texts: str, part: str) -> list[str]:
    """Documents of one part of `news`, `wiki` or a text file. Raises InputError for an unknown name or no UTF-8 text."""
    return [document for document in _all_documents(texts) if part_of(document) == part]


def digest(texts: str) -> str:
    """sha256 of the documents of a text source, for cache keys and manifests."""
    joined = "\n".join(_all_documents(os.fspath(texts)))
    return hashlib.sha256(joined.encode()).hexdigest()


def _all_documents(texts: str) -> list[str]:
    if texts in NAMES:
        folder = _wiki() if texts == "wiki" else downloads.fetch(downloads.TEXTS)
        return _lines((folder / f"{texts}.txt").read_text("utf-8"))
    path = given_path(texts)
    if not path or not path.is_file():
        raise refuse("texts", texts, f"a text file, or a known name: {nearest(texts, NAMES)}")
    content = read_text("texts", path, LARGEST)
    if "\0" in content:
        raise refuse("texts", texts, "a UTF-8 text file, one document a line")
    return _lines(content)


def _lines(content: str) -> list[str]:
    # str.splitlines would also split a document at form feeds and at U+2028.
    return [line.strip() for line in re.split(r"[\r\n]+", content) if line.strip()]


def _wiki() -> Path:
    """Folder with wiki.txt: the prose paragraphs of the enwiki excerpt but redirects, one article per line."""
    import mwparserfromhell  # needed once: the result is cached

    packed = downloads.fetch(downloads.TEXTS) / "wiki.xml.bz2"

    def make(folder: Path) -> None:
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
                lines = mwparserfromhell.parse(markup).strip_code().splitlines()
                prose = [line.strip() for line in lines if len(line) >= 200 and "|" not in line]
                out.write(" ".join(prose) + "\n")

    return artifact("wiki", {"sha256": sha256(packed)}, make, code=[Path(__file__)])


def _sentences(texts: str, part: str) -> list[str]:
    return [sentence for document in documents(texts, part) for sentence in sentences(document)]


def calibration_sentences(texts: str, samples: int, seed: int) -> list[str]:
    """`samples` sentences drawn without replacement from the calibration part. Raises InputError if it has fewer."""
    return _shuffled(texts, samples, seed)[:samples]


def held_back(texts: str, samples: int, seed: int) -> list[str]:
    """Up to HELD_BACK sentences that `calibration_sentences` does not draw. Raises InputError if less than a quarter is left."""
    pool = _shuffled(texts, samples, seed)
    if len(pool) - samples < HELD_BACK // 4:
        most = len(pool) - HELD_BACK
        accepted = f"at most {most}: a step needs sentences held back from the sample"
        raise refuse("calibration.samples", samples, accepted)
    return pool[samples:][:HELD_BACK]


def _shuffled(texts: str, samples: int, seed: int) -> list[str]:
    """All sentences of the calibration part in random order, a sample of `samples` first. Raises InputError if it has fewer."""
    pool = list(dict.fromkeys(_sentences(texts, "calibration")))
    _check_count("calibration.samples", samples, 1, len(pool), "sentences", texts)
    drawn = np.random.default_rng(seed).choice(len(pool), samples, replace=False)
    rest = np.setdiff1d(np.arange(len(pool)), drawn)
    order = [*drawn, *np.random.default_rng(seed).permutation(rest)]
    return [pool[index] for index in order]


def _check_count(parameter: str, count: int, least: int, most: int, items: str, texts: str) -> None:
    """Raise InputError for a number of items that is not from `least` to `most`, the number that `texts` has."""
    if most < least:
        accepted = f"a text with at least {least} {items} for it; {texts} has {most} in documents of its part"
        raise refuse(parameter, count, accepted)
    if not least <= count <= most:
        raise refuse(parameter, count, f"{least} to {most}, the {items} that {texts} has for it")


def evaluation_sentences(texts: str, count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """`count` sentences of the evaluation part that do not overlap the calibration part, and their documents' numbers.

    Raises InputError if there are fewer.
    """
    known = _owners(_sentences(texts, "calibration"))
    pool: dict[str, int] = {}
    for number, document in enumerate(documents(texts, "evaluation")):
        for sentence in sentences(document):
            if not _shared(sentence, known):
                pool.setdefault(sentence, number)
    _check_count("evaluation.sentences", count, 2, len(pool), "sentences", texts)
    drawn = sorted(np.random.default_rng(seed).choice(len(pool), count, replace=False))
    names, numbers = list(pool), list(pool.values())
    return [names[index] for index in drawn], [numbers[index] for index in drawn]


def evaluation_documents(texts: str) -> list[str]:
    """Documents of the evaluation part that share no 12 consecutive words with the calibration part."""
    return without_overlap(documents(texts, "evaluation"), documents(texts, "calibration"))


def without_overlap(candidates: list[str], others: list[str]) -> list[str]:
    """Those `candidates` that contain no 12 consecutive words of one of `others`, nor the whole of a shorter one."""
    known = _owners(others)
    return [text for text in candidates if not _shared(text, known)]


def check_overlap(calibration: list[str], evaluation: list[str]) -> None:
    """Raise InputError for a calibration text of which 12 consecutive words (or all its words) occur in evaluation text."""
    known = _owners(calibration)
    for other in evaluation:
        if text := _shared(other, known):
            accepted = "text that does not overlap the evaluation text; this one does"
            raise refuse("calibration.texts", text, accepted)


def _shingles(text: str, size: int = 0) -> set[Shingle]:
    """All runs of `size` words (by default 12, or their equivalent in characters); of a shorter text, the whole text."""
    words = segmentation.words(text)
    default = math.ceil(OVERLAP_WORDS * (segmentation.letters_per_word(text) or 1))
    size = min(size or default, len(words))
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _owners(texts: Iterable[str]) -> dict[int, dict[Shingle, str]]:
    """The text of every shingle, by the shingle's number of words."""
    owners: dict[int, dict[Shingle, str]] = {}
    for text in texts:
        for shingle in _shingles(text):
            owners.setdefault(len(shingle), {})[shingle] = text
    owners.pop(0, None)
    return owners


def _shared(text: str, known: dict[int, dict[Shingle, str]]) -> str | None:
    """One of the `known` texts of which a shingle occurs in `text`."""
    for size, owners in known.items():
        for shingle in _shingles(text, size) & owners.keys():
            return owners[shingle]
    return None


def cloze_pairs(count: int, texts: str = "wiki") -> tuple[list[str], list[str], list[int]]:
    """Inverse-cloze retrieval: queries, passages and documents' numbers; a query's hard negatives are of its document."""
    rows = query_passage_pairs(texts, "evaluation")
    _check_count("evaluation.passages", count, 2, len(rows), "passages", texts)
    queries, passages, numbers = zip(*rows[:count], strict=True)
    return list(queries), list(passages), list(numbers)


def query_passage_pairs(texts: str, part: str) -> list[tuple[str, str, int]]:
    """Query (12 words), passage (the next 28 words) and document's number of every stretch of text of a part.

    In scripts without spaces, words count by their usual characters. The first stretches of all documents come first.
    """
    rows = []
    for number, document in enumerate(documents(texts, part)):
        units, separator, per_word = segmentation.units(document)
        cut = int(QUERY_WORDS * per_word)
        length = int((QUERY_WORDS + PASSAGE_WORDS) * per_word)
        for turn, start in enumerate(range(0, len(units) - length + 1, length)):
            query = separator.join(units[start : start + cut]).strip()
            passage = separator.join(units[start + cut : start + length]).strip()
            rows.append((turn, number, query, passage))
    rows.sort(key=lambda row: row[:2])
    return [(query, passage, number) for _, number, query, passage in rows]


def human_pairs() -> dict[str, tuple[list[str], list[int], list[int], list[float]]]:
    """Pairs of `lee` (50 news items), `wordsim` and `simlex` (words): name -> (texts, left index, right index, score)."""
    folder = downloads.fetch(downloads.TEXTS)
    items = _lines((folder / "lee.txt").read_text("latin-1"))
    scores = np.loadtxt(folder / "lee_similarities.txt")
    upper = np.triu_indices(len(items), 1)  # the lower triangle is empty
    left, right = (indices.tolist() for indices in upper)
    pairs = {"lee": (items, left, right, scores[upper].tolist())}
    for name, file in (("wordsim", "wordsim353.tsv"), ("simlex", "simlex999.tsv")):
        lines = _lines((folder / file).read_text("utf-8"))
        rows = [line.split("\t") for line in lines if not line.startswith("#")]
        words = list(dict.fromkeys(word for row in rows for word in row[:2]))
        index = {word: number for number, word in enumerate(words)}
        left, right = ([index[row[side]] for row in rows] for side in (0, 1))
        pairs[name] = (words, left, right, [float(row[2]) for row in rows])
    return pairs
