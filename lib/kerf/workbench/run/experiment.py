"""An experiment: values of the command line, then of a YAML file, of the model's preset, and defaults; checked as a whole."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kerf.config import (
    METHODS,
    STEPS,
    Calibration,
    Conventions,
    Evaluation,
    Resources,
    check_chain,
    parse,
)
from kerf.core.errors import CONTROL, InputError, nearest, refuse
from kerf.core.paths import shipped
from kerf.core.user_files import given_path, read_text
from kerf.evaluate.criteria import find_criteria, read_criteria, uses_of
from kerf.models import conventions, families, registry
from kerf.workbench.run.yaml_reader import LARGEST, parse_yaml, read_yaml

KEYS = (
    "model",
    "conventions",
    "calibration",
    "evaluation",
    "resources",
    "candidates",
    "release",
    "criteria",
    "use",
)
SECTIONS: dict[str, Any]
SECTIONS = {"calibration": Calibration, "evaluation": Evaluation, "resources": Resources}
SECTIONS |= {"conventions": Conventions}
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NAMES = "of a-z, 0-9, '.', '_' and '-', at most 64 characters, not"  # NAME in a refusal
TAKEN = ("baseline", "history")  # folders in reports/ and in the report of an experiment
FILES = ("index.html", "results.json", "gates.xml", "release.md", "report.pdf")  # files there


@dataclass(frozen=True)
class Step:
    """One step of a chain; path: CANDIDATE.NUMBER; origin: where each of its parameters came from."""

    path: str
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
    use: list[str]  # uses that the verdict is about; empty where the deciding criteria name no use
    origin: dict[str, str]


def names() -> list[str]:
    """Experiments that come with Kerf."""
    return sorted(path.stem for path in (shipped() / "notebooks" / "experiments").glob("*.yaml"))


def find(experiment: str) -> Path:
    """Path of an experiment: a name of `names()` or a file."""
    if experiment in names():
        return shipped() / "notebooks" / "experiments" / f"{experiment}.yaml"
    if (path := given_path(experiment)) and path.is_file():
        return path
    accepted = f"a YAML file or a known name: {nearest(experiment, names())}"
    raise refuse("EXPERIMENT", experiment, accepted)


def is_available(name: object) -> bool:
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
    for key in content:
        if key not in KEYS:
            accepted = f"no such key in an experiment; {nearest(str(key), KEYS)}"
            raise refuse(str(key), content[key], accepted)
    overridden = _override(content, list(overrides))
    if model is not None:
        if "model" in overridden:
            raise refuse("--model", model, "a model once; -p model= names one already")
        content["model"] = model
        overridden.add("model")
    model = content.get("model")
    if not isinstance(model, str) or not model.strip() or CONTROL.search(model):
        raise refuse("model", model, "a name of `kerf list models`, a hub id or a directory")
    if not is_available(path.stem):
        accepted = f"a file name {NAMES} {', '.join(TAKEN + FILES)}"
        raise refuse("EXPERIMENT", path.stem, accepted)
    preset = known.calibration if (known := registry.preset_of(model)) else {}
    origin = {"model": "command line" if "model" in overridden else "experiment"}
    sections: dict[str, Any] = {"resources": None}
    for section, type_ in SECTIONS.items():
        if section in content or section != "resources":
            defaults = preset if section == "calibration" else {}
            values = content.get(section, {})
            sections[section], origins = _parse(type_, values, section, overridden, defaults)
            origin |= {f"{section}.{key}": source for key, source in origins.items()}
    model = conventions.named(model, sections.pop("conventions"))
    sections["candidates"] = _candidates(content.get("candidates"), overridden)
    release = _release(content.get("release", list(sections["candidates"])), sections["candidates"])
    criteria = content["criteria"] if "criteria" in content else [_family(model)]
    criteria = [criteria] if isinstance(criteria, str) else criteria
    judged = _criteria(criteria)
    outcome: dict[str, Any] = {"release": release, "criteria": judged, "deciding": criteria[0]}
    outcome["use"] = _use(content.get("use"), next(iter(judged.values())))
    return Experiment(path.stem, model, origin=origin, **sections, **outcome)


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
        if not is_available(name):
            accepted = f"names {NAMES} {', '.join(TAKEN + FILES)}; a number in quotes"
            raise refuse("candidates", name, accepted)
        chain = _sized(chain, list, f"candidates.{name}", "a list of steps", 20)
        candidates[name] = [_step(s, f"{name}.{n}", overridden) for n, s in enumerate(chain, 1)]
        check_chain([step.values for step in candidates[name]], name)
    return candidates


def _step(step: object, path: str, overridden: set[str]) -> Step:
    if not isinstance(step, dict) or len(step) != 1:
        example = "one kind of step with its parameters, as in {quantize: {bits: 4}}"
        raise refuse(path, step, f"{example}; kinds: {', '.join(STEPS)}")
    ((kind, values),) = step.items()
    if kind not in STEPS:
        raise refuse(path, kind, f"a kind of step: {nearest(str(kind), STEPS)}")
    values = {} if values is None else values  # `- reconstruct:` has all defaults
    return Step(path, kind, *_parse(STEPS[kind], values, path, overridden, {}))


def _release(value: object, candidates: dict[str, list[Step]]) -> list[str]:
    if not isinstance(value, list) or not value:
        raise refuse("release", value, f"a list of candidates: {', '.join(candidates)}")
    for number, name in enumerate(value, 1):
        if not isinstance(name, str) or name not in candidates:
            raise refuse(f"release.{number}", name, nearest(str(name), candidates))
        if name in value[: number - 1]:
            raise refuse(f"release.{number}", name, "each candidate once")
    return value


def _family(model: str) -> str:
    """The name of the model's family, which is that of its criteria; of a model that is refused later, any."""
    with suppress(InputError):
        return families.name_of(registry.resolve(model))
    return "encoder"


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


def _use(value: object, deciding: dict) -> list[str]:
    """The uses that an experiment names, or the first of the deciding criteria."""
    known = list(uses_of(deciding))
    if value is None:
        return known[:1]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise refuse("use", value, f"a list of uses: {', '.join(known)}")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise refuse("use", name, nearest(str(name), known))
    return list(dict.fromkeys(names))


def _override(content: dict, overrides: list[str]) -> set[str]:
    """Apply `overrides` in place and return the full paths. Raises InputError for an unknown, ambiguous or repeated path."""
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

    A key counts if the step has it with any method, since another override may change the method. Names of candidates may
    hold dots: a path that could mean two candidates means the one with the longer name.
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
