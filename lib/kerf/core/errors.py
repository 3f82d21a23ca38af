"""The exception for bad input of a user, and how untrusted text is printed."""

import difflib
import re
import reprlib
from collections.abc import Iterable

SHOWN = 120  # characters of a value in a refusal
LINE = 1000  # characters of a whole refusal
# Characters that move a terminal's cursor or reverse the order of a line, and lone surrogates, which UTF-8 cannot hold.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """Bad input, refused before heavy work. One printable line: the parameter, its value, what is accepted."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(str(message)[: 4 * LINE].split()), LINE))


class _ShortRepr(reprlib.Repr):
    """repr() that reads no more than it shows: a value may be huge, or nested deeply through YAML aliases."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 400 else f"an integer of {x.bit_length()} bits"


_short = _ShortRepr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxtuple = 3, 8, 8, 8
_short.maxstring = _short.maxother = SHOWN


def escaped(text: str) -> str:
    """`text` on one line, with control characters and lone surrogates as escapes."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable(text: object, most: int | None = None) -> str:
    """`text` with every character that cannot be printed as an escape, cut after `most` characters."""
    cut = str(text)[:most]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return shown if most is None or len(shown) <= most else f"{shown[: most - 3]}..."


def refuse(parameter: str, value: object, accepted: str) -> InputError:
    """Build the refusal `parameter = value: accepted`; the caller raises it."""
    shown = printable(_short.repr(value), SHOWN)
    return InputError(f"{printable(parameter, SHOWN)} = {shown}: {accepted}")


def nearest(word: str, known: Iterable[str]) -> str:
    """A question with the accepted words that are close to `word`; if none is, all accepted words."""
    known = sorted(known)
    if close := difflib.get_close_matches(str(word)[:SHOWN], known, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(close)}?"
    return f"accepted: {', '.join(known) or 'none, there is nothing yet'}"


def listed(names: Iterable[object], joint: str = "or") -> str:
    """a, b or c."""
    *first, last = map(str, names)
    return f"{', '.join(first)} {joint} {last}" if first else last


def one_of(value: object, known: Iterable[str]) -> str:
    """`a, b or c`, followed by the names that are close to a wrong value."""
    known = list(known)
    close = nearest(str(value), known)
    return listed(known) + (f"; {close}" if close.startswith("did you mean") else "")
