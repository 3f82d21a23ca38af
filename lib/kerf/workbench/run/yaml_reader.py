"""YAML for experiments: plain data of bounded size, with no value that could be read in two ways.

Scalars follow YAML 1.2's core schema in decimal: `true` and `false`, `null`, integers without leading zeros, floats.
Every other scalar is text, also where YAML 1.1 reads a number, a date or a boolean (`020`, `1:30`, `1_000`, `2020-01-01`,
`yes`); a field for a number then refuses it. Duplicate keys and tags are refused. Aliases and merge keys (`<<`) are expanded.
"""

import re
from typing import Any

import yaml

from kerf.core.errors import InputError, printable, refuse

DEPTH = 32  # nested lists and mappings
LARGEST = 2**16  # bytes of a file
NODES = 10_000  # nodes of a document, with its aliases expanded
SCALARS = {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]{0,39})",
    "float": r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*|(?=[eE])))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


def read_yaml(text: str, source: str) -> object:
    """Data of one YAML document, None if it is empty. Raises InputError with `source`, line and column, or the value's path."""
    try:
        return parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark or error.context_mark)
        problem = error.problem or error.context
        raise InputError(f"{source}: {place}: no valid YAML ({problem})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: no valid YAML ({str(error).splitlines()[0]})") from None


def parse_yaml(text: str, path: str = "") -> object:
    """Data of one YAML document; path: its place in an experiment. Raises yaml.YAMLError and InputError."""
    loader = _Loader(text)
    node = loader.get_single_node()
    return None if node is None else loader.value(node, path, 0)


class _Loader(yaml.SafeLoader):
    """Composes nodes to a limited depth, with the document's own tags; builds an aliased node anew at every alias."""

    yaml_implicit_resolvers: dict = {}
    depth = -1
    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self.depth += 1
        _check_depth(self.depth, "", event)
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
        else:
            self.anchors.pop(event.anchor, None)  # an anchor may be used again
            node = super().compose_node(parent, index)
            node.explicit_tag = event.tag
        self.depth -= 1
        return node

    def value(self, node: Any, path: str, depth: int) -> Any:
        self.nodes += 1
        _check_depth(depth, path, node)
        if self.nodes > NODES:
            most = f"at most {NODES} values in all, with aliases expanded"
            raise _refuse(path[:80], "...", most, node)
        if node.explicit_tag is not None:
            tag = node.explicit_tag.replace("tag:yaml.org,2002:", "!!")
            raise _refuse(path or "tag", tag, "no tags in YAML; a number in quotes is text", node)
        if isinstance(node, yaml.ScalarNode):
            return self.construct_object(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth + 1)
        paths = (f"{path}.{number}".lstrip(".") for number in range(1, len(node.value) + 1))
        return [self.value(*item, depth + 1) for item in zip(node.value, paths, strict=True)]

    def _mapping(self, node: Any, path: str, depth: int) -> dict:
        own: dict[object, object] = {}
        merged: dict[object, object] = {}
        lines: dict[object, int] = {}
        for key_node, value_node in node.value:
            key = self.value(key_node, path, depth)
            if isinstance(key, list | dict | float):
                raise _refuse(path or "key", key, "keys that are names", key_node)
            key_path = f"{path}.{printable(key, 64)}".lstrip(".")
            value = self.value(value_node, key_path, depth)
            if key in lines:
                accepted = f"each key once; line {lines[key]} has it already"
                raise _refuse(key_path, value, accepted, key_node)
            lines[key] = key_node.start_mark.line + 1
            if key == "<<" and key_node.style is None:
                mappings = value if isinstance(value, list) else [value]
                if not all(isinstance(mapping, dict) for mapping in mappings):
                    accepted = "a mapping, or a list of them, to be merged"
                    raise _refuse(key_path, value, accepted, key_node)
                for mapping in reversed(mappings):  # the first takes precedence
                    merged |= mapping
            else:
                own[key] = value
        return merged | own


for _name, _pattern in SCALARS.items():
    _regex = re.compile(rf"({_pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _regex, None)


def _check_depth(depth: int, path: str, node: Any) -> None:
    if depth > DEPTH:
        accepted = f"at most {DEPTH} lists and mappings in one another"
        raise _refuse(path[:80] or "depth", "...", accepted, node)


def _refuse(path: str, value: object, accepted: str, node: Any) -> InputError:
    return refuse(path, value, f"{accepted} ({_place(node.start_mark)})")


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
