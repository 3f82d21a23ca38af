"""What a user says of a model that its own files do not, as a part of its name: `NAME?query_prompt=query: &family=encoder`.

The model so named is a directory with the same files and another config_sentence_transformers.json. Whatever reads a model or a
candidate of it finds the prompts there, and every digest of the model counts them.
"""

import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from kerf.config import Conventions, parse
from kerf.core.atomic import write_json
from kerf.core.cache import artifact
from kerf.core.errors import InputError, refuse
from kerf.models import families, model_files

CONFIG = "config_sentence_transformers.json"
PROMPTS = {"query_prompt": "query", "passage_prompt": "document"}  # their names in that file
TYPES = {"encoder": "SentenceTransformer", "reranker": "CrossEncoder"}


def named(model: str, conventions: Conventions) -> str:
    """The name of a model with what is said of it. Raises InputError where the name has conventions of its own."""
    values = conventions.model_dump(exclude_none=True)
    if values and split(model)[1]:
        raise refuse("model", model, "a name without conventions, beside others that are given")
    return f"{model}?{urlencode(values, quote_via=quote, safe=' :')}" if values else model


def split(model: str) -> tuple[str, dict[str, Any]]:
    """A model's name, and what is said of it. Raises InputError for anything else behind its question mark."""
    name, mark, query = model.partition("?")
    if not mark or Path(model).is_dir():
        return model, {}
    values = dict(parse_qsl(query, keep_blank_values=True))
    try:
        parse(Conventions, values, "conventions")
        if not values:
            raise InputError("nothing stands behind ?")
    except InputError as refusal:
        accepted = f"NAME, or NAME?query_prompt=TEXT&passage_prompt=TEXT&family=NAME ({refusal})"
        raise refuse("model", model, accepted) from None
    return name, values


def applied(model: str, folder: Path, weights: str, values: dict[str, Any]) -> Path:
    """Artifact with the model of `folder`, whose digest is `weights`, as `values` say. Raises InputError for a family that it cannot
    be, and for prompts of a model that is no encoder."""
    family = values.get("family") or families.name_of(folder)
    if family not in (possible := families.possible(folder)):
        raise refuse("family", family, f"{' or '.join(possible)}, which {model} can be")
    if family != "encoder" and (prompts := [key for key in PROMPTS if key in values]):
        raise refuse(prompts[0], values[prompts[0]], f"an encoder; {model} is a {family} model")

    def make(made: Path) -> None:
        for source in model_files.of(folder):
            target = made / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source.resolve(), target)
            except OSError:  # another file system
                shutil.copyfile(source, target)
        config = model_files.read_or_empty(folder / CONFIG, dict)
        (made / CONFIG).unlink(missing_ok=True)
        if family not in TYPES:
            (made / "modules.json").unlink(missing_ok=True)
            return
        said = {PROMPTS[key]: values[key] for key in PROMPTS if key in values}
        prompts = {**config.get("prompts", {}), **said}
        write_json(made / CONFIG, {**config, "prompts": prompts, "model_type": TYPES[family]})

    return artifact("conventions", {"weights": weights, "said": values}, make, anywhere=True)
