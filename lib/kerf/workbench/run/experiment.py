"""An experiment: one YAML file, checked whole before anything runs.

Parameters come from four places; the later in this list yields to the earlier: the command line, the
experiment file, the model's preset, the defaults. Where each one came from is kept for the report.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from kerf.config import (
    METHODS,
    STEPS,
    Calibration,
    Evaluation,
    Parameters,
    Resources,
    check_chain,
    parse,
)
from kerf.core.errors import CONTROL, nearest, refuse
from kerf.core.paths import shipped
from kerf.core.user_files import given_path, read_text
from kerf.evaluate.gates import find_criteria, read_criteria
from kerf.models import registry
from kerf.workbench.run.overrides import KEYS, SECTIONS, override
from kerf.workbench.run.yaml_reader import LARGEST, read_yaml

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MANY = {"candidates": 200, "steps": 20, "criteria": 20}  # at most
TAKEN = ("baseline", "history")  # folders beside those of experiments and candidates
FILES = (
    "index.html",
    "results.json",
    "gates.xml",
    "release.md",
    "report.pdf",
)  # files there, and what they are written as first


@dataclass(frozen=True)
class Step:
    """One step of a chain: its kind ("quantize"), its parameters, and where each came from."""

    kind: str
    parameters: Parameters
    origin: dict[str, str]

    @property
    def notebook(self) -> str:
        """Name of the notebook that does it."""
        return (
            "kernels"
            if self.kind == "quantize" and METHODS[self.parameters.method].kernel
            else self.kind
        )


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
    return sorted(path.stem for path in (shipped() / "notebooks" / "experiments").glob("*.yaml"))


def find(experiment: str) -> Path:
    """Path of an experiment: a name of `names()` or a file."""
    if experiment in names():
        return shipped() / "notebooks" / "experiments" / f"{experiment}.yaml"
    path = given_path(experiment)
    if not path or not path.is_file():
        raise refuse(
            "EXPERIMENT", experiment, f"a YAML file or a known name: {nearest(experiment, names())}"
        )
    return path


def is_free(name: object) -> bool:
    """Whether an experiment or a candidate may be called so: no folder or file of a report is."""
    shaped = isinstance(name, str) and NAME.fullmatch(name)
    return (
        bool(shaped)
        and name.rstrip(".") not in TAKEN
        and not f"{name}.".startswith(tuple(f"{file}." for file in FILES))
    )


def read(experiment: str, overrides: list[str] = (), model: str | None = None) -> Experiment:
    """Read, override and check an experiment. Raises InputError with the path of the first wrong value."""
    path = find(experiment)
    content = read_yaml(read_text("EXPERIMENT", path, LARGEST), str(path))
    if not isinstance(content, dict):
        raise refuse("EXPERIMENT", str(path), f"keys and values; accepted: {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise refuse(
                str(key), content[key], f"no such key in an experiment; {nearest(str(key), KEYS)}"
            )
    given = override(content, overrides)
    if model is not None:
        if "model" in given:
            raise refuse("--model", model, "a model once; -p model= names one already")
        content["model"], given = model, given | {"model"}
    _check_model(content.get("model"))
    if not is_free(path.stem):
        raise refuse(
            "EXPERIMENT",
            path.stem,
            f"a file name of a-z, 0-9, '.', '_' and '-', at most 64 characters, not {', '.join(TAKEN + FILES)}",
        )
    return _typed(path.stem, content, given)


def _check_model(model: object) -> None:
    if not isinstance(model, str) or not model.strip() or CONTROL.search(model):
        raise refuse("model", model, "a name of `kerf list models`, a hub id or a directory")


def _typed(name: str, content: dict, given: set[str]) -> Experiment:
    preset = (
        registry.MODELS[content["model"]].calibration if content["model"] in registry.MODELS else {}
    )
    origin = {"model": "command line" if "model" in given else "experiment"}
    sections = {}
    for section, kind in SECTIONS.items():
        if section == "resources" and section not in content:
            continue
        values = content.get(section, {})
        under = preset if section == "calibration" else {}
        sections[section] = parse(
            kind, {**under, **values} if isinstance(values, dict) else values, section
        )
        for key in kind.model_fields:
            origin[f"{section}.{key}"] = _origin(f"{section}.{key}", key, given, values, under)
    candidates = _candidates(content.get("candidates"), given)
    release = _release(content.get("release", list(candidates)), candidates)
    asked = content.get("criteria", ["encoder"])
    asked = [asked] if isinstance(asked, str) else asked
    criteria = _criteria(asked)
    return Experiment(
        name,
        content["model"],
        sections["calibration"],
        sections["evaluation"],
        sections.get("resources"),
        candidates,
        release,
        criteria,
        asked[0],
        origin,
    )


def _origin(path: str, key: str, given: set[str], values: dict, under: dict) -> str:
    if path in given or path.rpartition(".")[0] in given and key in values:
        return "command line"
    if key in values:
        return "experiment"
    return "model preset" if key in under else "default"


def _candidates(value: object, given: set[str]) -> dict[str, list[Step]]:
    if not isinstance(value, dict) or not 0 < len(value) <= MANY["candidates"]:
        raise refuse(
            "candidates", value, f"name: [steps], at least one, at most {MANY['candidates']}"
        )
    found = {}
    for name, chain in value.items():
        if not is_free(name):
            accepted = "names of a-z, 0-9, '.', '_' and '-', at most 64 characters, not baseline"
            raise refuse(
                "candidates",
                name,
                f"{accepted}, {', '.join((*TAKEN[1:], *FILES))}; a number in quotes",
            )
        if not isinstance(chain, list) or not 0 < len(chain) <= MANY["steps"]:
            raise refuse(
                f"candidates.{name}",
                chain,
                f"a list of steps, at least one, at most {MANY['steps']}",
            )
        found[name] = [
            _step(step, f"{name}.{number}", given) for number, step in enumerate(chain, 1)
        ]
        check_chain([{step.kind: step.parameters.model_dump()} for step in found[name]], name)
    return found


def _step(step: object, path: str, given: set[str]) -> Step:
    if not isinstance(step, dict) or len(step) != 1:
        raise refuse(
            path,
            step,
            f"one kind of step with its parameters, as in {{quantize: {{bits: 4}}}}; kinds: "
            f"{', '.join(STEPS)}",
        )
    ((kind, values),) = step.items()
    if kind not in STEPS:
        raise refuse(path, kind, f"a kind of step: {nearest(str(kind), STEPS)}")
    values = {} if values is None else values  # `- reconstruct:` has all defaults
    parameters = parse(STEPS[kind], values, path)
    origin = {
        key: _origin(f"{path}.{key}", key, given, values, {})
        for key in type(parameters).model_fields
    }
    return Step(kind, parameters, origin)


def _release(value: object, candidates: dict) -> list[str]:
    if not isinstance(value, list) or not value:
        raise refuse("release", value, f"a list of candidates: {', '.join(candidates)}")
    for number, name in enumerate(value, 1):
        if not isinstance(name, str) or name not in candidates:
            raise refuse(
                f"release.{number}",
                name,
                nearest(str(name) if isinstance(name, str) else "", candidates),
            )
        if name in value[: number - 1]:
            raise refuse(f"release.{number}", name, "each candidate once")
    return value


def _criteria(value: object) -> dict[str, dict]:
    if (
        not isinstance(value, list)
        or not 0 < len(value) <= MANY["criteria"]
        or not all(isinstance(name, str) for name in value)
    ):
        raise refuse(
            "criteria",
            value,
            f"a list of names in data/criteria, or of JSON files, at most {MANY['criteria']}",
        )
    found = {}
    for path in map(find_criteria, value):
        if path.stem in found:
            raise refuse("criteria", value, f"each name once; {path.stem} stands there twice")
        found[path.stem] = read_criteria(path)
    return found
