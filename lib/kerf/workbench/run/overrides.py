"""Overrides of an experiment on the command line: PATH=VALUE, with the value in YAML as in the file."""

from collections import defaultdict

import yaml

from kerf.config import STEPS, Calibration, Evaluation, Parameters, Resources
from kerf.core.errors import nearest, refuse
from kerf.workbench.run.yaml_reader import parse_yaml

KEYS = ("model", "calibration", "evaluation", "resources", "candidates", "release", "criteria")
SECTIONS: dict[str, type[Parameters]] = {
    "calibration": Calibration,
    "evaluation": Evaluation,
    "resources": Resources,
}


def override(content: dict, overrides: list[str]) -> set[str]:
    """Apply `overrides` to an experiment's `content` in place. Returns the full paths that were set.

    Raises InputError for a path that matches no value or several, and for a path that is set twice.
    """
    paths: set[str] = set()
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise refuse("-p", text, "PATH=VALUE, as in calibration.samples=64")
        try:
            full_path = _set(content, path, parse_yaml(value, path))
        except yaml.YAMLError:  # text as it stands: the name of a file may have any characters
            full_path = _set(content, path, value)
        if full_path in paths:
            raise refuse("-p", text, f"each path once; {full_path} is set already")
        paths.add(full_path)
    return paths


def _set(content: dict, path: str, value: object) -> str:
    if path in KEYS and path != "candidates":
        content[path] = value
        return path
    section, _, key = path.partition(".")
    if section in SECTIONS and key in (fields := SECTIONS[section].model_fields):
        values = content.setdefault(section, {})
        if not isinstance(values, dict):
            raise refuse(section, values, f"keys and values; accepted: {', '.join(fields)}")
        values[key] = value
        return path
    steps = _steps_by_path(content.get("candidates"))
    if path not in steps:
        known = [key for key in KEYS if key != "candidates"]
        known += [f"{name}.{key}" for name in SECTIONS for key in SECTIONS[name].model_fields]
        known += [name for name, by_full_path in steps.items() if name not in by_full_path]
        raise refuse("-p", path, nearest(path, known))
    if len(steps[path]) > 1:
        raise refuse("-p", path, f"several steps have it: {' or '.join(steps[path])}")
    ((full_path, step),) = steps[path].items()
    (kind,) = step
    step[kind] = {**(step[kind] or {}), full_path.rpartition(".")[2]: value}
    return full_path


def _steps_by_path(candidates: object) -> dict[str, dict[str, dict]]:
    """Steps with a key, by CANDIDATE.KEY and CANDIDATE.NUMBER.KEY, and then by the latter.

    A key counts if the step has it with any method, since another override may change the method. The name of a candidate
    may hold dots: of two candidates that a path could mean, it means the one with the longer name.
    """
    chains = candidates.items() if isinstance(candidates, dict) else ()
    steps: dict[str, dict[str, dict]] = {}
    for name, chain in sorted(chains, key=lambda item: len(str(item[0]))):
        if not isinstance(name, str) or not isinstance(chain, list):
            continue
        own: dict[str, dict[str, dict]] = defaultdict(dict)
        for number, step in enumerate(filter(_is_step, chain), 1):
            (kind,) = step
            for key in STEPS[kind].model_fields:
                full_path = f"{name}.{number}.{key}"
                own[full_path][full_path] = own[f"{name}.{key}"][full_path] = step
        steps |= own
    return steps


def _is_step(step: object) -> bool:
    if not isinstance(step, dict) or len(step) != 1:
        return False
    ((kind, values),) = step.items()
    return kind in STEPS and isinstance(values, dict | None)
