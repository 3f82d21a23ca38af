"""Write what was chosen by hand as a candidate of an experiment file, which then runs headless."""

import tempfile
from pathlib import Path

import yaml

from kerf.config import Calibration
from kerf.core.errors import refuse
from kerf.core.paths import root
from kerf.core.user_files import read_text
from kerf.models import families, registry
from kerf.workbench.run import experiment
from kerf.workbench.run.yaml_reader import LARGEST, read_yaml

TITLE = "# Chosen in explore.ipynb."  # files that begin otherwise were written by people, and keep their comments


def add_candidate(
    name: str, model: str, calibration: Calibration, candidate: str, steps: list[dict]
) -> Path:
    """notebooks/experiments/<name>.yaml with one candidate more. Raises InputError, and writes nothing, for a name that is no
    file's name, an experiment of another hand, model or calibration, a candidate that is there already, and wrong steps."""
    if not experiment.is_free(name):
        raise refuse(
            "experiment", name, "a name of a-z, 0-9, '.', '_' and '-', at most 64 characters"
        )
    path = root() / "notebooks" / "experiments" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"model": model, "calibration": calibration.model_dump(), "candidates": {}}
    if path.is_file():
        text = read_text("experiment", path, LARGEST)
        if not text.startswith(TITLE):
            raise refuse(
                "experiment", name, "one that was begun here; this one was written by hand"
            )
        there = read_yaml(text, str(path))
        for key in ("model", "calibration"):
            if there[key] != content[key]:
                raise refuse(
                    key,
                    content[key],
                    f"{there[key]}, as {name} has it; another experiment takes it",
                )
        content = there
    if candidate in content["candidates"]:
        raise refuse("candidate", candidate, f"a name that is free in {name}")
    content["candidates"][candidate] = steps
    content["criteria"] = [families.name_of(registry.resolve(model))]
    text = f"{TITLE}\n{yaml.safe_dump(content, sort_keys=False)}"
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        draft = Path(aside, path.name)
        draft.write_text(text)
        experiment.read(str(draft))
        return draft.replace(path)
