"""Segmentation of text of any script: sentences, words, and graphemes as units where words stand without spaces.

A sentence in Latin letters ends at a mark before a space and a capital; sentencex segments all others (straight quotation
marks mislead it in Latin text). Scripts without a mark at the end of a sentence are split at spaces, which end a phrase.
"""

import unicodedata

import regex
import sentencex

LEAST, MOST = 30, 300  # columns of a sentence: a wide character takes two, a combining mark none
SCRIPT_SAMPLE = 4000  # characters of a document by which its script is detected
_LATIN_END = regex.compile(r"(?<=[.!?])[\"'”’»]?\s+(?=[\"'„“‘«¿¡]?\p{Lu})")
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")  # a word has about 1.5 characters
_PHRASED = regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")  # about 4
_UNMARKED = regex.compile(r"[\p{Thai}\p{Lao}\p{Tibetan}]")
_UNSPACED = regex.compile(f"{_DENSE.pattern}|{_PHRASED.pattern}")
_WORD = regex.compile(rf"({_UNSPACED.pattern})\p{{M}}*|((?!{_UNSPACED.pattern})\w)+")
_AT_THE_END = regex.compile(r"""[[\s.!?"']||[\p{P}--[\x00-\x7f]]]+$""", regex.V1)
SCRIPTS = {
    name: regex.compile(rf"\p{{{name}}}")
    for name in [
        "Latin",
        "Cyrillic",
        "Greek",
        "Han",
        "Hiragana",
        "Katakana",
        "Hangul",
        "Arabic",
        "Hebrew",
        "Devanagari",
        "Thai",
    ]
}
# Languages with marks or abbreviations of their own, by their script.
_LANGUAGES = {"el": r"\p{Greek}", "ru": r"\p{Cyrillic}"}


def _mostly(text: str, script: str | regex.Pattern) -> bool:
    text = text[:SCRIPT_SAMPLE]
    return 2 * len(regex.findall(script, text)) > len(regex.findall(r"\p{L}", text))


def script_of(text: str) -> str:
    """The script of most letters of a text, as Latin or Cyrillic; none without letters."""
    counts = {name: len(pattern.findall(text)) for name, pattern in SCRIPTS.items()}
    most = max(counts, key=counts.__getitem__)
    if counts[most]:
        return most
    return "other" if regex.search(r"\p{L}", text) else "none"


def letters_per_word(text: str) -> float:
    """Approximate characters per word in scripts without spaces between words; 0 in other scripts."""
    scripts = ((_DENSE, 1.5), (_PHRASED, 4.0)) if _UNSPACED.search(text) else ()
    return next((letters for script, letters in scripts if _mostly(text, script)), 0.0)


def columns(text: str) -> int:
    """Width of a text in columns of a terminal."""
    if text.isascii():
        return len(text)
    spacing = [c for c in text if not unicodedata.combining(c) and unicodedata.category(c) != "Mn"]
    return len(spacing) + sum(unicodedata.east_asian_width(c) in "WF" for c in spacing)


def sentences(document: str) -> list[str]:
    """Sentences of LEAST to MOST columns."""
    pieces = map(str.strip, _pieces(document))
    return [piece for piece in pieces if LEAST <= columns(piece) <= MOST]


def _pieces(document: str) -> list[str]:
    if document.isascii() or _mostly(document, r"\p{Latin}"):
        return _LATIN_END.split(document)
    languages = (name for name, script in _LANGUAGES.items() if _mostly(document, script))
    pieces = []
    for piece in sentencex.segment(next(languages, "en"), document):
        # sentencex reads a digit after an ideographic full stop as the rest of a number; it begins a sentence.
        pieces += regex.split(r"(?<=[。！？])(?=\p{Nd})", piece)
    if not _mostly(document, _UNMARKED):
        return pieces
    phrases = []  # joined until they have the width of a sentence
    for piece in pieces:
        phrases.append("")
        for phrase in piece.split():
            if columns(phrases[-1]) >= LEAST:
                phrases.append(phrase)
            else:
                phrases[-1] = f"{phrases[-1]} {phrase}".strip()
    return phrases


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; single characters in scripts without spaces."""
    if not _UNSPACED.search(text):
        return regex.findall(r"\w+", text.lower())
    return [match[0] for match in _WORD.finditer(text.lower())]


def units(text: str) -> tuple[list[str], str, float]:
    """Units of a text by which passages are cut, the separator that joins them, and how many make a word."""
    if per_word := letters_per_word(text):
        return regex.findall(r"\X", " ".join(text.split())), "", per_word
    return text.split(), " ", 1


def last_word(text: str) -> tuple[str, str]:
    """(text before, last word) of a text without the marks at its end; ("", "") if the text does not end in a word."""
    before, _, last = _AT_THE_END.sub("", text).rpartition(" ")
    if letters_per_word(text) or not regex.fullmatch(r"[\p{L}\p{M}]+", last):
        return "", ""
    return before, last
