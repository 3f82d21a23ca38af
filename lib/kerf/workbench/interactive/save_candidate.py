"""Write a candidate that was chosen by hand into an experiment file, which then runs headless."""

from pathlib import Path
from typing import Any, cast

import yaml

from kerf.config import Calibration
from kerf.core.errors import refuse
from kerf.core.paths import root
from kerf.core.scratch import scratch
from kerf.core.user_files import read_text
from kerf.models import families, registry
from kerf.workbench.run import experiment
from kerf.workbench.run.yaml_reader import LARGEST, read_yaml

# Files without this first line were written by people, and may have comments that would get lost.
TITLE = "# Chosen in explore.ipynb."


def add_candidate(
    name: str, model: str, calibration: Calibration, candidate: str, steps: list[dict]
) -> Path:
    """Add a candidate to notebooks/experiments/<name>.yaml.

    Raises InputError, and writes nothing, for an invalid name or steps, a candidate that exists, and an experiment that
    was written by hand or has another model or calibration.
    """
    if not experiment.is_available(name):
        accepted = "a name of a-z, 0-9, '.', '_' and '-', at most 64 characters"
        raise refuse("experiment", name, accepted)
    path = root() / "notebooks" / "experiments" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = {"model": model, "calibration": calibration.key()}
    content: dict[str, Any] = {**shared, "candidates": {}}
    if path.is_file():
        text = read_text("experiment", path, LARGEST)
        if not text.startswith(TITLE):
            accepted = "one that was begun in this notebook; this one was written by hand"
            raise refuse("experiment", name, accepted)
        content = cast(dict, read_yaml(text, str(path)))
        for key, value in shared.items():
            if content[key] != value:
                accepted = f"{content[key]}, as in {name}; choose another experiment"
                raise refuse(key, value, accepted)
    if candidate in content["candidates"]:
        raise refuse("candidate", candidate, f"a name that is free in {name}")
    content["candidates"][candidate] = steps
    content["criteria"] = [families.name_of(registry.resolve(model))]
    with scratch(parent=path.parent) as folder:
        draft = folder / path.name
        draft.write_text(f"{TITLE}\n{yaml.safe_dump(content, sort_keys=False)}")
        experiment.read(str(draft))
        return draft.replace(path)
