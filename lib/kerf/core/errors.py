"""The one exception that means "your input, not our code", and how text of others is shown."""

import difflib
import re
import reprlib
from collections.abc import Iterable

SHOWN = 120  # characters of a value in a refusal
LINE = 1000  # characters of a whole refusal
# What moves a terminal's cursor or turns the order of a line around, and what no UTF-8 text can hold.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """Bad input, found before heavy work. One printable line: the parameter, its value, what is accepted."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(str(message)[: 4 * LINE].split()), LINE))


class _Shortened(reprlib.Repr):
    """repr() that looks at no more than it shows: a value may be huge, or hold itself many times over."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxtuple = 3, 8, 8, 8
        self.maxstring = self.maxother = SHOWN

    def repr_int(self, number: int, level: int) -> str:
        return (
            repr(number)
            if number.bit_length() <= 400
            else f"an integer of {number.bit_length()} bits"
        )


_shortened = _Shortened()


def escaped(text: str) -> str:
    """`text` on one line with its control characters and lone surrogates as escapes."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def of_page(text: str) -> str:
    """`text` of many lines with its control characters as escapes; ends of lines and tabs stay."""
    return re.sub(r"[^\n\t]+", lambda found: escaped(found[0]), text)


def printable(text: object, most: int | None = None) -> str:
    """`text` with everything as escapes that is no letter, mark or single space; cut after `most` characters."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[:most]
    )
    return shown if most is None or len(shown) <= most else f"{shown[: most - 3]}..."


def refuse(parameter: str, value: object, accepted: str) -> "InputError":
    """Build the refusal `parameter = value: accepted`; the caller raises it."""
    return InputError(
        f"{printable(parameter, SHOWN)} = {printable(_shortened.repr(value), SHOWN)}: {accepted}"
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """The accepted words, the closest to `word` first when one is close."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word)[:SHOWN], known, n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"accepted: {', '.join(known) or 'none, there is nothing yet'}"
    )


def listed(names: Iterable[object], joint: str = "or") -> str:
    """a, b or c."""
    *first, last = map(str, names)
    return f"{', '.join(first)} {joint} {last}" if first else last


def one_of(value: object, known: Iterable[str]) -> str:
    """`a, b or c`, and those that are close to a wrong value."""
    close = nearest(str(value), known)
    return listed(known) + (f"; {close}" if close.startswith("did you mean") else "")
