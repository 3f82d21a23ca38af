"""An experiment: one YAML file, checked as a whole before anything runs.

Values come from the command line, the experiment file, the model's preset or the defaults, in this order of precedence.
The origin of each value is kept for the report.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerf.config import METHODS, STEPS, Calibration, Evaluation, Resources, check_chain, parse
from kerf.core.errors import CONTROL, nearest, refuse
from kerf.core.paths import shipped
from kerf.core.user_files import given_path, read_text
from kerf.evaluate.gates import find_criteria, read_criteria
from kerf.models import registry
from kerf.workbench.run.overrides import KEYS, SECTIONS, override
from kerf.workbench.run.yaml_reader import LARGEST, read_yaml

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NAMES = "of a-z, 0-9, '.', '_' and '-', at most 64 characters, not"  # NAME in a refusal
TAKEN = ("baseline", "history")  # folders in reports/ and in the report of an experiment
FILES = ("index.html", "results.json", "gates.xml", "release.md", "report.pdf")  # files there


@dataclass(frozen=True)
class Step:
    """One step of a chain: its kind ("quantize"), its parameters, and the origin of each parameter."""

    kind: str
    parameters: Any
    origin: dict[str, str]

    @property
    def notebook(self) -> str:
        """Name of the notebook that runs the step."""
        on_kernel = self.kind == "quantize" and METHODS[self.parameters.method].kernel
        return "kernels" if on_kernel else self.kind

    @property
    def values(self) -> dict[str, dict]:
        """The step as in an experiment, with all its defaults: {kind: values}."""
        return {self.kind: self.parameters.model_dump()}


@dataclass(frozen=True)
class Experiment:
    """A checked experiment. origin: where each value came from, by its path."""

    name: str
    model: str
    calibration: Calibration
    evaluation: Evaluation
    resources: Resources | None  # None: the service benchmark is not part of the experiment
    candidates: dict[str, list[Step]]
    release: list[str]
    criteria: dict[str, dict]
    deciding: str  # the first criteria, as the experiment names them
    origin: dict[str, str]


def names() -> list[str]:
    """Experiments that come with Kerf."""
    return sorted(path.stem for path in (shipped() / "notebooks" / "experiments").glob("*.yaml"))


def find(experiment: str) -> Path:
    """Path of an experiment: a name of `names()` or a file."""
    if experiment in names():
        return shipped() / "notebooks" / "experiments" / f"{experiment}.yaml"
    path = given_path(experiment)
    if not path or not path.is_file():
        accepted = f"a YAML file or a known name: {nearest(experiment, names())}"
        raise refuse("EXPERIMENT", experiment, accepted)
    return path


def is_free(name: object) -> bool:
    """Whether an experiment or a candidate may have this name: no folder or file of a report has it."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name.rstrip(".") in TAKEN:
        return False
    return not f"{name}.".startswith(tuple(f"{file}." for file in FILES))


def read(experiment: str, overrides: Sequence[str] = (), model: str | None = None) -> Experiment:
    """Read, override and check an experiment. Raises InputError with the path of the first wrong value."""
    path = find(experiment)
    content = read_yaml(read_text("EXPERIMENT", path, LARGEST), str(path))
    if not isinstance(content, dict):
        raise refuse("EXPERIMENT", str(path), f"keys and values; accepted: {', '.join(KEYS)}")
    for key, value in content.items():
        if key not in KEYS:
            accepted = f"no such key in an experiment; {nearest(str(key), KEYS)}"
            raise refuse(str(key), value, accepted)
    overridden = override(content, list(overrides))
    if model is not None:
        if "model" in overridden:
            raise refuse("--model", model, "a model once; -p model= names one already")
        content["model"] = model
        overridden.add("model")
    model = content.get("model")
    if not isinstance(model, str) or not model.strip() or CONTROL.search(model):
        raise refuse("model", model, "a name of `kerf list models`, a hub id or a directory")
    if not is_free(path.stem):
        accepted = f"a file name {NAMES} {', '.join(TAKEN + FILES)}"
        raise refuse("EXPERIMENT", path.stem, accepted)
    return _checked(path.stem, content, overridden)


def _checked(name: str, content: dict, overridden: set[str]) -> Experiment:
    model = content["model"]
    preset = registry.MODELS[model].calibration if model in registry.MODELS else {}
    origin = {"model": "command line" if "model" in overridden else "experiment"}
    sections: dict[str, Any] = {"resources": None}
    for section, type_ in SECTIONS.items():
        if section == "resources" and section not in content:
            continue
        defaults = preset if section == "calibration" else {}
        values = content.get(section, {})
        sections[section], origins = _parse(type_, values, section, overridden, defaults)
        origin |= {f"{section}.{key}": source for key, source in origins.items()}
    candidates = _candidates(content.get("candidates"), overridden)
    release = _release(content.get("release", list(candidates)), candidates)
    criteria = content.get("criteria", ["encoder"])
    criteria = [criteria] if isinstance(criteria, str) else criteria
    return Experiment(
        name=name,
        model=model,
        **sections,
        candidates=candidates,
        release=release,
        criteria=_criteria(criteria),
        deciding=criteria[0],
        origin=origin,
    )


def _parse(
    type_: Any, values: Any, path: str, overridden: set[str], preset: Mapping[str, object]
) -> tuple[Any, dict[str, str]]:
    """Typed parameters of a section or a step, and the origin of each value by its key."""
    parameters = parse(type_, {**preset, **values} if isinstance(values, dict) else values, path)
    origin = {}
    for key in type(parameters).model_fields:
        if f"{path}.{key}" in overridden or path in overridden and key in values:
            origin[key] = "command line"
        elif key in values:
            origin[key] = "experiment"
        else:
            origin[key] = "model preset" if key in preset else "default"
    return parameters, origin


def _sized(value: Any, type_: type[list | dict], path: str, accepted: str, most: int) -> Any:
    """`value`, if it is a list or mapping of 1 to `most` items."""
    if not isinstance(value, type_) or not 0 < len(value) <= most:
        raise refuse(path, value, f"{accepted}, at least one, at most {most}")
    return value


def _candidates(value: object, overridden: set[str]) -> dict[str, list[Step]]:
    candidates = {}
    for name, chain in _sized(value, dict, "candidates", "name: [steps]", 200).items():
        if not is_free(name):
            taken = ", ".join((*TAKEN[1:], *FILES))
            accepted = f"names {NAMES} baseline, {taken}; a number in quotes"
            raise refuse("candidates", name, accepted)
        chain = _sized(chain, list, f"candidates.{name}", "a list of steps", 20)
        steps = [_step(step, f"{name}.{n}", overridden) for n, step in enumerate(chain, 1)]
        check_chain([step.values for step in steps], name)
        candidates[name] = steps
    return candidates


def _step(step: object, path: str, overridden: set[str]) -> Step:
    if not isinstance(step, dict) or len(step) != 1:
        example = "one kind of step with its parameters, as in {quantize: {bits: 4}}"
        raise refuse(path, step, f"{example}; kinds: {', '.join(STEPS)}")
    ((kind, values),) = step.items()
    if kind not in STEPS:
        raise refuse(path, kind, f"a kind of step: {nearest(str(kind), STEPS)}")
    values = {} if values is None else values  # `- reconstruct:` has all defaults
    return Step(kind, *_parse(STEPS[kind], values, path, overridden, {}))


def _release(value: object, candidates: dict[str, list[Step]]) -> list[str]:
    if not isinstance(value, list) or not value:
        raise refuse("release", value, f"a list of candidates: {', '.join(candidates)}")
    for number, name in enumerate(value, 1):
        if not isinstance(name, str) or name not in candidates:
            near = nearest(name if isinstance(name, str) else "", candidates)
            raise refuse(f"release.{number}", name, near)
        if name in value[: number - 1]:
            raise refuse(f"release.{number}", name, "each candidate once")
    return value


def _criteria(value: object) -> dict[str, dict]:
    accepted = "a list of names in data/criteria, or of JSON files"
    paths = _sized(value, list, "criteria", accepted, 20)
    if not all(isinstance(name, str) for name in paths):
        raise refuse("criteria", value, accepted)
    criteria: dict[str, dict] = {}
    for path in map(find_criteria, paths):
        if path.stem in criteria:
            raise refuse("criteria", value, f"each name once; {path.stem} stands there twice")
        criteria[path.stem] = read_criteria(path)
    return criteria
