"""Criteria files: gates by use, each with its threshold, source and reason.

A use is what a candidate may be good for, such as `drop-in`. A gate without one holds for every use of its file.
"""

import json
import operator
import re
from pathlib import Path
from typing import Any

from kerf.config import check_value
from kerf.core.errors import nearest, printable, refuse
from kerf.core.paths import shipped
from kerf.core.user_files import given_path, read_text
from kerf.evaluate.metrics import METRICS

LARGEST = 1e15  # of a threshold, bytes included
OPS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
USE = re.compile(r"[a-z][a-z-]{0,39}")
_TOP = ("schema", "uses", "gates")
_KEYS = {"metric", "op", "threshold", "use", "applies_to", "source", "reason"}


def find_criteria(name: str) -> Path:
    """Path of a JSON file, or of a name in data/criteria. Raises InputError where it is neither."""
    known = {path.stem: path for path in (shipped() / "data" / "criteria").glob("*.json")}
    path = given_path(name) if name.endswith(".json") else known.get(name)
    if not path or not path.is_file():
        raise refuse("criteria", name, f"a JSON file or a known name: {nearest(name, known)}")
    return path


def read_criteria(path: Path) -> dict[str, Any]:
    """A criteria file, validated. Raises InputError that names the file, the gate and the key."""
    text = read_text("criteria", path)
    try:
        criteria = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise refuse("criteria", str(path), f"valid JSON ({error})") from None
    schema = criteria.get("schema") if isinstance(criteria, dict) else None
    if isinstance(schema, bool) or schema != 1 or not isinstance(criteria.get("gates"), list):
        raise refuse("criteria", str(path), '{"schema": 1, "gates": [...]}')
    for key in criteria.keys() - set(_TOP):
        accepted = f"no such key; accepted: {', '.join(_TOP)}"
        raise refuse(f"{path.stem}.{key}", criteria[key], accepted)
    uses = criteria.get("uses", {})
    texts = isinstance(uses, dict) and all(isinstance(text, str) for text in uses.values())
    if not texts or not all(map(USE.fullmatch, uses)):
        raise refuse(f"{path.stem}.uses", uses, '{"drop-in": "what it means"}, names of a-z and -')
    for number, gate in enumerate(criteria["gates"]):
        _check_gate(gate, f"{path.stem}.gates.{number}", uses)
    return criteria


def uses_of(criteria: dict[str, Any]) -> dict[str, str]:
    """The uses of a criteria file and what they mean: those under `uses`, or else those that its gates name."""
    if "uses" in criteria:
        return criteria["uses"]
    return {gate["use"]: "" for gate in criteria["gates"] if "use" in gate}


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {printable(key, 64)} stands twice")
        values[key] = value
    return values


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _check_gate(gate: Any, where: str, uses: dict[str, str]) -> None:
    if not isinstance(gate, dict):
        raise refuse(where, gate, f"an object with {', '.join(sorted(_KEYS))}")
    for key in set(gate) - _KEYS:
        raise refuse(f"{where}.{key}", gate[key], f"no such key; {nearest(key, _KEYS)}")
    name = gate["metric"] if isinstance(gate.get("metric"), str) else ""
    threshold, applies_to = gate.get("threshold", ""), gate.get("applies_to", {})
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    metric, in_range = METRICS.get(name), is_number and abs(threshold) <= LARGEST
    use = gate.get("use", "any")
    interval = "a metric with an interval; a minimum or maximum has none"
    checks = [
        ("metric", metric, nearest(name, METRICS)),
        ("metric", metric and metric.gated, interval),
        ("op", gate.get("op") in list(OPS), f"one of {', '.join(OPS)}"),
        ("threshold", in_range, f"a finite number from {-LARGEST:g} to {LARGEST:g}"),
        ("use", isinstance(use, str) and USE.fullmatch(use), "a name of a-z and -"),
        ("use", not uses or "use" not in gate or use in uses, nearest(str(use), uses)),
        *((key, isinstance(gate.get(key, ""), str), "text") for key in ("source", "reason")),
        ("applies_to", isinstance(applies_to, dict), '{"bits": 2} or {"candidate": "GLOB"}'),
    ]
    for key, accepted, words in checks:
        if not accepted:
            raise refuse(f"{where}.{key}", gate.get(key), words)
    for key, value in applies_to.items():
        if key != "candidate":
            check_value(key, value, f"{where}.applies_to.{key}")
        elif not isinstance(value, str) or not value:
            raise refuse(f"{where}.applies_to.{key}", value, "a GLOB of names of candidates")
