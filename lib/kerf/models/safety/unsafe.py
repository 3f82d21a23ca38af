"""The reason for which a directory is refused, and text of a directory in a message."""


class Unsafe(Exception):
    """What is accepted in the place of what was found, in one line."""


def shown(text: object, length: int = 100) -> str:
    """Text that somebody else wrote, fit for a terminal: of bounded length and without control characters."""
    start = str(text)[: length + 1]
    shown = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in start
    )
    return shown if len(start) <= length else f"{shown[: length - 3]}..."
