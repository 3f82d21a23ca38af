"""An experiment: one YAML file, checked whole before anything runs.

Parameters come from four places; the later in this list yields to the earlier: the command line, the
experiment file, the model's preset, the defaults. Where each one came from is kept for the report.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from kerf import models
from kerf.errors import Refused, nearest, refuse
from kerf.judge import find_criteria, read_criteria
from kerf.places import root
from kerf.steps import REAL, STEPS, Calibration, Evaluation, Parameters, Resources, check_chain, parse

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
KEYS = ("model", "calibration", "evaluation", "resources", "candidates", "release", "criteria")
SECTIONS = {"calibration": Calibration, "evaluation": Evaluation, "resources": Resources}


@dataclass(frozen=True)
class Step:
    """One step of a chain: its kind ("quantize"), its parameters, and where each came from."""

    kind: str
    parameters: Parameters
    origin: dict[str, str]

    @property
    def notebook(self) -> str:
        """Name of the notebook that does it."""
        return "kernels" if getattr(self.parameters, "method", None) in REAL else self.kind


@dataclass(frozen=True)
class Experiment:
    """A checked experiment."""

    name: str
    model: str
    calibration: Calibration
    evaluation: Evaluation
    resources: Resources | None  # None: nobody asked for them
    candidates: dict[str, list[Step]]
    release: list[str]
    criteria: dict[str, dict]
    deciding: str  # the first criteria, as they were asked for
    origin: dict[str, str] = field(default_factory=dict)


def names() -> list[str]:
    """Experiments that come with the clone."""
    return sorted(path.stem for path in (root() / "notebooks" / "experiments").glob("*.yaml"))


def find(experiment: str) -> Path:
    """Path of an experiment: a name of `names()` or a file."""
    known = root() / "notebooks" / "experiments" / f"{experiment}.yaml"
    if known.is_file() and NAME.fullmatch(experiment):
        return known
    if Path(experiment).is_file():
        return Path(experiment)
    raise refuse("EXPERIMENT", experiment, f"a YAML file or a known name: {nearest(experiment, names())}")


def read(experiment: str, overrides: list[str] = (), model: str | None = None) -> Experiment:
    """Read, override and check an experiment. Raises Refused with the path of the first wrong value."""
    path = find(experiment)
    content = _parse_yaml(path)
    for key in content:
        if key not in KEYS:
            raise refuse(str(key), content[key], f"no such key in an experiment; {nearest(str(key), KEYS)}")
    given = _apply(content, [_split(override) for override in overrides])
    if model is not None:
        content["model"], given = model, given | {"model"}
    if not isinstance(content.get("model"), str):
        raise refuse("model", content.get("model"), "a name of `kerf list models`, a hub id or a directory")
    if not NAME.fullmatch(path.stem):
        raise refuse("EXPERIMENT", path.stem, "a file name of a-z, 0-9, '.', '_' and '-', at most 64 characters")
    return _typed(path.stem, content, given)


def _parse_yaml(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise refuse("EXPERIMENT", str(path), "a UTF-8 text file") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        raise Refused(f"{path}: {where}: no valid YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise Refused(f"{path}: no valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise refuse("EXPERIMENT", str(path), f"keys and values; accepted: {', '.join(KEYS)}")
    return content


def _split(override: str) -> tuple[str, object]:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise refuse("-p", override, "PATH=VALUE, as in calibration.samples=64")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError:
        return path, value


def _apply(content: dict, overrides: list[tuple[str, object]]) -> set[str]:
    """Set overrides in `content`; returns the full paths that were set."""
    return {_set(content, path, value) for path, value in overrides}


def _set(content: dict, path: str, value: object) -> str:
    candidates = content.get("candidates") if isinstance(content.get("candidates"), dict) else {}
    if path in KEYS and path != "candidates":
        content[path] = value
        return path
    head, _, key = path.partition(".")
    if head in SECTIONS and key in SECTIONS[head].model_fields:
        content[head] = {**(content.get(head) or {}), key: value}
        return path
    # A candidate's name may hold dots, so it is the longest name that the path starts with.
    name = max((n for n in map(str, candidates) if path.startswith(f"{n}.")), key=len, default=None)
    if name is not None:
        found = _step_key(candidates[name], path[len(name) + 1 :], path)
        if found:
            number, key = found
            next(iter(candidates[name][number].values()))[key] = value
            return f"{name}.{number + 1}.{key}"
    raise refuse("-p", path, nearest(path, _paths(candidates)))


def _step_key(chain: object, rest: str, path: str) -> tuple[int, str] | None:
    if not isinstance(chain, list) or not all(isinstance(s, dict) and len(s) == 1 for s in chain):
        return None
    kinds = [STEPS.get(next(iter(step))) for step in chain]
    number, _, key = rest.partition(".")
    if number.isdigit():
        place = int(number) - 1
        return (place, key) if 0 <= place < len(chain) and kinds[place] and key in kinds[place].model_fields else None
    places = [place for place, kind in enumerate(kinds) if kind and rest in kind.model_fields]
    if len(places) > 1:
        choices = [f"{path.removesuffix(rest)}{place + 1}.{rest}" for place in places]
        raise refuse("-p", path, f"several steps have it: {' or '.join(choices)}")
    return (places[0], rest) if places else None


def _paths(candidates: dict) -> list[str]:
    found = [key for key in KEYS if key != "candidates"]
    found += [f"{section}.{key}" for section, kind in SECTIONS.items() for key in kind.model_fields]
    for name, chain in candidates.items():
        for step in chain if isinstance(chain, list) else []:
            kind = STEPS.get(next(iter(step), "")) if isinstance(step, dict) else None
            found += [f"{name}.{key}" for key in (kind.model_fields if kind else ())]
    return found


def _typed(name: str, content: dict, given: set[str]) -> Experiment:
    preset = models.MODELS[content["model"]].calibration if content["model"] in models.MODELS else {}
    origin = {"model": "command line" if "model" in given else "experiment"}
    sections = {}
    for section, kind in SECTIONS.items():
        if section == "resources" and section not in content:
            continue
        values = content.get(section) or {}
        under = preset if section == "calibration" else {}
        sections[section] = parse(kind, {**under, **values} if isinstance(values, dict) else values, section)
        for key in kind.model_fields:
            origin[f"{section}.{key}"] = _origin(f"{section}.{key}", key, given, values, under)
    candidates = _candidates(content.get("candidates"), given)
    release = _release(content.get("release"), candidates)
    asked = content.get("criteria", ["encoder"])
    asked = [asked] if isinstance(asked, str) else asked
    criteria = _criteria(asked)
    return Experiment(name, content["model"], sections["calibration"], sections["evaluation"], sections.get("resources"), candidates,
                      release, criteria, asked[0], origin)  # fmt: skip


def _origin(path: str, key: str, given: set[str], values: dict, under: dict) -> str:
    if path in given:
        return "command line"
    if key in values:
        return "experiment"
    return "model preset" if key in under else "default"


def _candidates(value: object, given: set[str]) -> dict[str, list[Step]]:
    if not isinstance(value, dict) or not value:
        raise refuse("candidates", value, "name: [steps], at least one")
    found = {}
    for name, chain in value.items():
        if not isinstance(name, str) or not NAME.fullmatch(name) or name == "baseline":
            raise refuse("candidates", name, "names of a-z, 0-9, '.', '_' and '-', at most 64 characters, not baseline")
        if not isinstance(chain, list) or not chain:
            raise refuse(f"candidates.{name}", chain, "a list of steps, at least one")
        found[name] = [_step(step, f"{name}.{number}", given) for number, step in enumerate(chain, 1)]
        check_chain([{step.kind: step.parameters.model_dump()} for step in found[name]], name)
    return found


def _step(step: object, path: str, given: set[str]) -> Step:
    if not isinstance(step, dict) or len(step) != 1:
        raise refuse(path, step, f"one kind of step with its parameters, as in {{quantize: {{bits: 4}}}}; kinds: "
                                 f"{', '.join(STEPS)}")  # fmt: skip
    (kind, values), = step.items()
    if kind not in STEPS:
        raise refuse(path, kind, f"a kind of step: {nearest(str(kind), STEPS)}")
    values = values or {}
    parameters = parse(STEPS[kind], values, path)
    origin = {key: _origin(f"{path}.{key}", key, given, values, {}) for key in STEPS[kind].model_fields}
    return Step(kind, parameters, origin)


def _release(value: object, candidates: dict) -> list[str]:
    if value is None:
        return list(candidates)
    if not isinstance(value, list) or not value:
        raise refuse("release", value, f"a list of candidates: {', '.join(candidates)}")
    for name in value:
        if name not in candidates:
            raise refuse("release", name, nearest(str(name), candidates))
    return value


def _criteria(value: object) -> dict[str, dict]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise refuse("criteria", value, "a list of names in data/criteria, or of JSON files")
    paths = [find_criteria(name) for name in value]
    return {path.stem: read_criteria(path) for path in paths}
