"""Where texts of any script are cut: sentences, words, and what stands for words in scripts without spaces.

Documents mostly in Latin letters end a sentence at a mark that a space and a capital follow. All others are cut by
sentencex, the segmenter of Wikimedia, whose straight quotation marks mislead it in Latin text alone. Scripts that write no
mark at the end of a sentence are cut at their spaces, which end a phrase.
"""

import unicodedata

import regex
import sentencex

LEAST, MOST = 30, 300  # columns of a sentence: a wide character takes two, a combining mark none
LOOKED_AT = 4000  # characters of a document that tell its script
_LATIN_END = regex.compile(r"(?<=[.!?])[\"'”’»]?\s+(?=[\"'„“‘«¿¡]?\p{Lu})")
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")  # a word has about 1.5 characters
_PHRASED = regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")  # about 4
_UNMARKED = regex.compile(r"[\p{Thai}\p{Lao}\p{Tibetan}]")
_UNSPACED = regex.compile(f"{_DENSE.pattern}|{_PHRASED.pattern}")
_WORD = regex.compile(rf"({_UNSPACED.pattern})\p{{M}}*|((?!{_UNSPACED.pattern})\w)+")
_AT_THE_END = regex.compile(r"""[[\s.!?"']||[\p{P}--[\x00-\x7f]]]+$""", regex.V1)
_LANGUAGES = {
    "el": r"\p{Greek}",
    "ru": r"\p{Cyrillic}",
}  # whose marks or abbreviations are their own


def _mostly(text: str, script: str | regex.Pattern) -> bool:
    text = text[:LOOKED_AT]
    return 2 * len(regex.findall(script, text)) > len(regex.findall(r"\p{L}", text))


def letters_per_word(text: str) -> float:
    """About how many characters a word has where words stand without spaces; 0 where spaces divide them."""
    if not _UNSPACED.search(text):
        return 0.0
    return 1.5 if _mostly(text, _DENSE) else 4.0 if _mostly(text, _PHRASED) else 0.0


def columns(text: str) -> int:
    """Width of a text in columns."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(c) or unicodedata.category(c) == "Mn"
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def sentences(document: str) -> list[str]:
    """Sentences of LEAST to MOST columns."""
    return [piece for piece in map(str.strip, _pieces(document)) if LEAST <= columns(piece) <= MOST]


def _pieces(document: str) -> list[str]:
    if document.isascii() or _mostly(document, r"\p{Latin}"):
        return _LATIN_END.split(document)
    language = next(
        (name for name, script in _LANGUAGES.items() if _mostly(document, script)), "en"
    )
    # A digit behind an ideographic full stop begins a sentence; sentencex takes it for the rest of a number.
    found = [
        part
        for piece in sentencex.segment(language, document)
        for part in regex.split(r"(?<=[。！？])(?=\p{Nd})", piece)
    ]
    return (
        [phrase for piece in found for phrase in _phrases(piece)]
        if _mostly(document, _UNMARKED)
        else found
    )


def _phrases(piece: str) -> list[str]:
    """Phrases, joined until they are long enough to be a sentence."""
    found = [""]
    for phrase in piece.split():
        if columns(found[-1]) >= LEAST:
            found.append(phrase)
        else:
            found[-1] = f"{found[-1]} {phrase}".strip()
    return found


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; single characters in scripts without spaces."""
    if not _UNSPACED.search(text):
        return regex.findall(r"\w+", text.lower())
    return [found[0] for found in _WORD.finditer(text.lower())]


def units(text: str) -> tuple[list[str], str, float]:
    """What a text is cut into to take so many words of it: the units, what joins them, and how many make a word."""
    per_word = letters_per_word(text)
    return (
        (regex.findall(r"\X", " ".join(text.split())), "", per_word)
        if per_word
        else (text.split(), " ", 1)
    )


def last_word(text: str) -> tuple[str, str]:
    """(text before, last word) of a text without the marks at its end; ("", "") where no word of its own is the last."""
    before, _, last = _AT_THE_END.sub("", text).rpartition(" ")
    own = not letters_per_word(text) and regex.fullmatch(r"[\p{L}\p{M}]+", last)
    return (before, last) if own else ("", "")
