"""What the command line sets in an experiment: PATH=VALUE, the value read as in the file."""

import yaml

from kerf.config import STEPS, Calibration, Evaluation, Resources
from kerf.core.errors import nearest, refuse
from kerf.workbench.run.yaml_reader import parse_yaml

KEYS = ("model", "calibration", "evaluation", "resources", "candidates", "release", "criteria")
SECTIONS = {"calibration": Calibration, "evaluation": Evaluation, "resources": Resources}


def override(content: dict, overrides: list[str]) -> set[str]:
    """Set `overrides` in an experiment's `content`. Returns the full paths that were set.

    Raises InputError for a path that matches nothing or several things, and for one that is set twice.
    """
    given = set()
    for each in overrides:
        path = _set(content, *_split(each))
        if path in given:
            raise refuse("-p", each, f"each path once; {path} is set already")
        given.add(path)
    return given


def _split(override: str) -> tuple[str, object]:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise refuse("-p", override, "PATH=VALUE, as in calibration.samples=64")
    try:
        return path, parse_yaml(value, path)
    except yaml.YAMLError:  # no YAML, so the text itself: a file's name may have any characters
        return path, value


def _set(content: dict, path: str, value: object) -> str:
    candidates = content.get("candidates") if isinstance(content.get("candidates"), dict) else {}
    if path in KEYS and path != "candidates":
        content[path] = value
        return path
    head, _, key = path.partition(".")
    if head in SECTIONS and key in SECTIONS[head].model_fields:
        if not isinstance(content.setdefault(head, {}), dict):
            raise refuse(
                head,
                content[head],
                f"keys and values; accepted: {', '.join(SECTIONS[head].model_fields)}",
            )
        content[head][key] = value
        return path
    # A candidate's name may hold dots, so it is the longest name that the path starts with.
    name = max((n for n in map(str, candidates) if path.startswith(f"{n}.")), key=len, default=None)
    if name is not None:
        found = _step_key(candidates.get(name), path[len(name) + 1 :], path)
        if found:
            number, key = found
            ((kind, values),) = candidates[name][number].items()
            candidates[name][number] = {kind: {**(values or {}), key: value}}
            return f"{name}.{number + 1}.{key}"
    raise refuse("-p", path, nearest(path, _paths(candidates)))


def _step_key(chain: object, rest: str, path: str) -> tuple[int, str] | None:
    if not isinstance(chain, list) or not all(map(_is_step, chain)):
        return None
    fields = [_fields(step) for step in chain]
    number, _, key = rest.partition(".")
    if number.isdecimal() and number.isascii() and len(number) < 10:
        place = int(number) - 1
        return (place, key) if 0 <= place < len(chain) and key in fields[place] else None
    places = [place for place, known in enumerate(fields) if rest in known]
    if len(places) > 1:
        choices = [f"{path.removesuffix(rest)}{place + 1}.{rest}" for place in places]
        raise refuse("-p", path, f"several steps have it: {' or '.join(choices)}")
    return (places[0], rest) if places else None


def _fields(step: dict) -> list[str]:
    """Keys that a step may have: with another method, others."""
    (kind,) = step
    return [*STEPS[kind].model_fields]


def _is_step(step: object) -> bool:
    return (
        isinstance(step, dict)
        and len(step) == 1
        and next(iter(step)) in STEPS
        and isinstance(next(iter(step.values())), dict | None)
    )


def _paths(candidates: dict) -> list[str]:
    found = [key for key in KEYS if key != "candidates"]
    found += [f"{section}.{key}" for section, kind in SECTIONS.items() for key in kind.model_fields]
    for name, chain in candidates.items():
        for step in chain if isinstance(chain, list) else []:
            if _is_step(step):
                found += [f"{name}.{key}" for key in _fields(step)]
    return found
