"""Real text, split by document into a calibration and an evaluation part that share nothing.

The sources of `kerf.data.bundled` come with Kerf (see data/README.md); files of one's own serve as well
(`kerf.data.own_files`). A hash of its text assigns a document to a part, whatever the order.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np

from kerf.core.cache import artifact
from kerf.core.errors import nearest, refuse
from kerf.data import own_files, segmentation
from kerf.data.bundled import TEXTS
from kerf.data.overlap import without_overlap
from kerf.data.segmentation import sentences

PARTS = ("calibration", "evaluation")
HELD_BACK = 128  # sentences that a step is evaluated on while it runs
QUERY_WORDS, PASSAGE_WORDS = 12, 28  # of an inverse-cloze pair

Texts = str | Sequence[str]  # one source, or several
Item = TypeVar("Item")


def names_of(texts: Texts) -> list[str]:
    """The names of one or several sources, each once."""
    return list(dict.fromkeys([texts] if isinstance(texts, str | os.PathLike) else texts))


def family_of(source: str) -> str:
    """The source family of a text source, a collection or a table."""
    return TEXTS[source].family if source in TEXTS else own_files.parse("texts", source).family


def label(source: str) -> str:
    """Name of a source in reports: that of a file, without its folder and its family."""
    return source if source in TEXTS else own_files.parse("texts", source).label


def part_of(document: str) -> str:
    """Part that a document belongs to, by a hash of its text."""
    return PARTS[hashlib.sha256(document.encode()).digest()[0] % 2]


def documents(texts: Texts, part: str) -> list[str]:
    """Documents of one part of bundled sources or files. Raises InputError for an unknown name or no UTF-8 text."""
    everything = chain.from_iterable(map(_all_documents, names_of(texts)))
    return [document for document in everything if part_of(document) == part]


def digest(texts: Texts) -> str:
    """sha256 of the documents of text sources, for cache keys and manifests."""
    names = names_of(texts)
    if len(names) == 1 and names[0] in TEXTS:
        return _digest_of_bundled(names[0])
    everything = chain.from_iterable(map(_all_documents, names))
    # A conversation is more than its text: the roles count too.
    joined = "\n".join(str(getattr(document, "messages", document)) for document in everything)
    return hashlib.sha256(joined.encode()).hexdigest()


@cache
def _digest_of_bundled(name: str) -> str:
    return hashlib.sha256("\n".join(TEXTS[name].documents()).encode()).hexdigest()


def _all_documents(source: str) -> list[str]:
    if source in TEXTS:
        return TEXTS[source].documents()
    known = f"a text file, a table, or a known name: {nearest(source, TEXTS)}"
    return own_files.read("texts", source, known).texts


def shares(texts: Texts, samples: int) -> list[tuple[str, int]]:
    """The sources of a sample of so many items, and how many are of each: equal shares."""
    names = names_of(texts)
    least, more = divmod(samples, len(names))
    return [(name, least + (number < more)) for number, name in enumerate(names)]


def drawn(
    texts: Texts, samples: int, items: str, pool_of: Callable[[str, int], list[Item]]
) -> tuple[list[Item], list[Item]]:
    """A sample in which all sources have equal shares, and what is left of them, in turn. Raises InputError for too few.

    items: what is drawn, for a refusal. pool_of(source, share): its items in random order, all or many more than `share`.
    """
    sample: list[Item] = []
    rest = []
    for name, share in shares(texts, samples):
        pool = pool_of(name, share)
        sources = len(names_of(texts))
        check_count("calibration.samples", samples, 1, len(pool), items, name, sources)
        sample += pool[:share]
        rest.append(pool[share:])
    turns = zip_longest(*rest, fillvalue=None)
    return sample, [item for turn in turns for item in turn if item is not None]


def calibration_sentences(texts: Texts, samples: int, seed: int) -> list[str]:
    """`samples` sentences drawn without replacement from the calibration part. Raises InputError if it has fewer."""
    return _drawn_sentences(texts, samples, seed)[0]


def held_back(texts: Texts, samples: int, seed: int) -> list[str]:
    """Up to HELD_BACK sentences that `calibration_sentences` does not draw. Raises InputError if less than a quarter is left."""
    rest = _drawn_sentences(texts, samples, seed)[1]
    if len(rest) < HELD_BACK // 4:
        most = samples + len(rest) - HELD_BACK
        accepted = f"at most {most}: a step needs sentences held back from the sample"
        raise refuse("calibration.samples", samples, accepted)
    return rest[:HELD_BACK]


def _drawn_sentences(texts: Texts, samples: int, seed: int) -> tuple[list[str], list[str]]:
    def pool_of(name: str, _: int) -> list[str]:
        pool = list(dict.fromkeys(_sentences(name, "calibration")))
        return [pool[index] for index in np.random.default_rng(seed).permutation(len(pool))]

    return drawn(texts, samples, "sentences", pool_of)


def _sentences(source: str, part: str) -> list[str]:
    return [sentence for document in documents(source, part) for sentence in sentences(document)]


def check_count(
    parameter: str, count: int, least: int, most: int, items: str, texts: str, sources: int = 1
) -> None:
    """Raise InputError for a number of items that is not from `least` to `most`, the number that `texts` has, or for several
    sources with equal shares to that number for each."""
    if most < least:
        accepted = f"a text with at least {least} {items} for it; {texts} has {most} in documents of its part"
        raise refuse(parameter, count, accepted)
    if not least <= count <= most * sources:
        share = f", for each of {sources} sources" if sources > 1 else ""
        accepted = f"{least} to {most * sources}, the {items} that {texts} has for it{share}"
        raise refuse(parameter, count, accepted)


def remembered(kind: str, key: dict, make: Callable[[], list]) -> list:
    """Rows that `make` returns, JSON, made once for the same key: comparing all text of a family takes seconds."""

    def write(folder: Path) -> None:
        (folder / "rows.json").write_text(json.dumps(make()), encoding="utf-8")

    folder = artifact(kind, key, write, code=[make.__module__], anywhere=True)
    return json.loads((folder / "rows.json").read_text("utf-8"))


def evaluation_sentences(source: str, count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """`count` sentences of the evaluation part that do not overlap the calibration part, and their documents' numbers.

    Raises InputError if there are fewer.
    """
    texts = {name: digest(name) for name in relatives(source)}
    key = {"texts": texts, "source": texts[source], "count": count, "seed": seed}
    rows = remembered("sample", key, lambda: _drawn_apart(source, count, seed))
    return [sentence for sentence, _ in rows], [number for _, number in rows]


def _drawn_apart(source: str, count: int, seed: int) -> list[tuple[str, int]]:
    pool: dict[str, int] = {}
    for number, document in enumerate(documents(source, "evaluation")):
        for sentence in sentences(document):
            pool.setdefault(sentence, number)
    order = [list(pool)[index] for index in np.random.default_rng(seed).permutation(len(pool))]
    for tried in (2 * count, len(pool)):
        chosen = without_overlap(order[:tried], _calibration_sentences(source))
        if len(chosen) >= max(count, 2):
            break
    check_count("evaluation.sentences", count, 2, len(chosen), "sentences", source)
    chosen = sorted(chosen[:count], key=pool.__getitem__)
    return [(sentence, pool[sentence]) for sentence in chosen]


def _calibration_sentences(source: str) -> Iterable[str]:
    """Those of every source of the family: articles of one encyclopedia occur in several."""
    return chain.from_iterable(_sentences(name, "calibration") for name in relatives(source))


def relatives(source: str) -> list[str]:
    """The sources of the same family, itself among them."""
    if source not in TEXTS:
        return [source]
    return [name for name, text in TEXTS.items() if text.family == TEXTS[source].family]


def evaluation_documents(source: str, words: int | None = None, least: int = 0) -> list[str]:
    """Documents of the evaluation part that share no 12 consecutive words with the calibration part, in random order.

    words, least: as many documents as have so many words, and so many of them; all by default.
    """
    texts = {name: digest(name) for name in relatives(source)}
    key = {"texts": texts, "source": digest(source), "words": words, "least": least}
    chosen = remembered("documents", key, lambda: _documents_apart(source, words, least))
    own = {text: text for text in documents(source, "evaluation")}  # conversations have messages
    return [own[text] for text in chosen]


def _documents_apart(source: str, words: int | None, least: int) -> list[str]:
    chosen = shortened(documents(source, "evaluation"), words, least=least)
    return without_overlap(chosen, documents(relatives(source), "calibration"))


def shortened(texts: list[str], words: int | None, seed: int = 0, least: int = 0) -> list[str]:
    """Texts in random order: `least`, and as many as have so many words together; None: all."""
    chosen: list[str] = []
    for index in np.random.default_rng(seed).permutation(len(texts)):
        if words is not None and words <= 0 and len(chosen) >= least:
            break
        chosen.append(texts[index])
        words = None if words is None else words - len(segmentation.words(texts[index]))
    return chosen


def query_passage_pairs(texts: Texts, part: str) -> list[tuple[str, str, int]]:
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
