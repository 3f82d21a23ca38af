"""YAML as it is meant here: plain data, bounded, and nothing that could be read in two ways.

Scalars are those of YAML 1.2's core schema in decimal: `true` and `false`, `null`, whole numbers without leading zeros, floats.
Everything else is text: what YAML 1.1 makes a number, a date or a truth value of (`020`, `1:30`, `1_000`, `2020-01-01`, `yes`)
is text too, and is refused where a number is wanted. A key stands once. Tags are refused; aliases and merge keys (`<<`) are
followed as long as the whole stays small.
"""

import re
from copy import deepcopy
from dataclasses import dataclass, field

import yaml

from kerf.core.errors import InputError, printable, refuse

DEPTH = 32  # of lists and mappings in one another
LARGEST = 2**16  # bytes of a file
NODES = 10_000  # with those that aliases repeat
DIGITS = 40
WORDS = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
}
WHOLE = re.compile(rf"[-+]?(0|[1-9][0-9]{{0,{DIGITS - 1}}})")
FLOAT = re.compile(
    r"[-+]?((\.[0-9]+|(0|[1-9][0-9]*)\.[0-9]*)(e[-+]?[0-9]+)?|(0|[1-9][0-9]*)e[-+]?[0-9]+|\.inf)|\.nan"
)


def read_yaml(text: str, where: str) -> object:
    """The data of one YAML document; None for an empty one. `where`: what a refusal calls it.

    Raises InputError with line and column, and with the path of the value where it is known.
    """
    try:
        return parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        problem = f"{error.problem or error.context}"
        raise InputError(
            f"{where}: {_place(error.problem_mark or error.context_mark)}: no valid YAML ({problem})"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: no valid YAML ({str(error).splitlines()[0]})") from None


def parse_yaml(text: str, path: str = "") -> object:
    """The data of one YAML document; `path`: where in an experiment it stands. Raises yaml.YAMLError and InputError."""
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    next(events)
    if isinstance(next(events), yaml.StreamEndEvent):
        return None
    builder = _Builder(events)
    value, _ = builder.node(next(events), path, 0)
    next(events)
    if not isinstance(after := next(events), yaml.StreamEndEvent):
        raise yaml.MarkedYAMLError(problem="a second document", problem_mark=after.start_mark)
    return value


def scalar(text: str) -> object:
    """What a plain scalar means."""
    if text in WORDS:
        return WORDS[text]
    if WHOLE.fullmatch(text):
        return int(text)
    return (
        float(re.sub(r"\.(?=inf|nan)", "", text.lower())) if FLOAT.fullmatch(text.lower()) else text
    )


def _place(mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"


def _height(value: object) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_height, parts), default=0) if isinstance(value, list | dict) else 0


@dataclass
class _Builder:
    """Turns events into data. Every value comes with the number of nodes in it, so that aliases are counted as what they stand for."""

    events: object
    anchors: dict = field(default_factory=dict)
    nodes: int = 0

    def node(self, event, path: str, depth: int) -> tuple[object, int]:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise yaml.MarkedYAMLError(
                    problem="an alias of nothing before it", problem_mark=event.start_mark
                )
            value, size = self.anchors[event.anchor]
            self._count(size, path, event)
            self._deep(depth + _height(value), path, event)
            return deepcopy(value), size  # what is set in one place must not change the other
        if event.tag is not None:
            raise refuse(
                path or "tag",
                event.tag.replace("tag:yaml.org,2002:", "!!"),
                f"no tags in YAML; a number in quotes is text ({_place(event.start_mark)})",
            )
        before = self.nodes
        self._count(1, path, event)
        self._deep(depth, path, event)
        if isinstance(event, yaml.ScalarEvent):
            value = scalar(event.value) if event.implicit[0] else event.value
        else:
            value = (self._list if isinstance(event, yaml.SequenceStartEvent) else self._mapping)(
                path, depth
            )
        if event.anchor:
            self.anchors[event.anchor] = value, self.nodes - before
        return value, self.nodes - before

    def _count(self, more: int, path: str, event) -> None:
        self.nodes += more
        if self.nodes > NODES:
            raise refuse(
                path[:80],
                "...",
                f"at most {NODES} values in all, those that aliases repeat counted again ({_place(event.start_mark)})",
            )

    def _deep(self, depth: int, path: str, event) -> None:
        if depth > DEPTH:
            raise refuse(
                path[:80],
                "...",
                f"at most {DEPTH} lists and mappings in one another ({_place(event.start_mark)})",
            )

    def _list(self, path: str, depth: int) -> list:
        found = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            found.append(self.node(event, f"{path}.{len(found) + 1}".lstrip("."), depth + 1)[0])
        return found

    def _mapping(self, path: str, depth: int) -> dict:
        found, merged, lines = {}, {}, {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
                raise refuse(
                    path or "key", "...", f"keys that are names ({_place(event.start_mark)})"
                )
            key, _ = self.node(event, path, depth + 1)
            if isinstance(key, list | dict | float):
                raise refuse(
                    path or "key", key, f"keys that are names ({_place(event.start_mark)})"
                )
            own = f"{path}.{printable(key, 64)}".lstrip(".")
            value, _ = self.node(next(self.events), own, depth + 1)
            if key in lines:
                raise refuse(
                    own,
                    value,
                    f"each key once; line {lines[key]} has it already ({_place(event.start_mark)})",
                )
            lines[key] = event.start_mark.line + 1
            if key == "<<" and getattr(event, "implicit", (False,))[0]:
                merged = self._merged(value, own, event)
            else:
                found[key] = value
        return {**merged, **found}

    def _merged(self, value: object, path: str, event) -> dict:
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            raise refuse(
                path,
                value,
                f"a mapping, or a list of them, to be merged ({_place(event.start_mark)})",
            )
        return {key: each for part in reversed(parts) for key, each in part.items()}
