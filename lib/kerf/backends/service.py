"""The switch of a service: which encoder and which reranker it gets, by two variables of its environment.

USE_QUANTIZATION=true|false turns it on, QUANTIZATION_CONFIG=int8|int4|none says which. A service calls
`kerf.embedder()` where it made a SentenceTransformer and `kerf.reranker()` where it made a CrossEncoder, and uses what
it gets as one.
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from kerf.core.errors import refuse
from kerf.core.paths import data_folder

ACCEPTED = {"use_quantization": "true or false", "quantization_config": "int8, int4 or none"}


class Switch(BaseSettings):
    """What the environment says."""

    use_quantization: bool = False
    quantization_config: Literal["int8", "int4", "none"] = "int8"


def wanted() -> str:
    """int8, int4 or none. Raises InputError for a value that is not accepted, naming the variable."""
    try:
        switch = Switch()
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise refuse(key.upper(), first["input"], ACCEPTED[key]) from None
    return switch.quantization_config if switch.use_quantization else "none"


def embedder(model: str = "minilm", candidates: str | Path | None = None):
    """The encoder that the environment asks for: the candidate int8 or int4 of a directory, or the model in float.

    candidates: a directory of an experiment's candidates, default that of `minilm-int8`. Raises InputError for a wrong
    value, a candidate that is not there, and one that was made of another model.
    """
    return _asked_for(model, candidates, "encoder", "minilm-int8")


def reranker(model: str = "reranker", candidates: str | Path | None = None):
    """The reranker that the environment asks for, with `predict` and `rank`; like `embedder`, default `reranker-int8`."""
    return _asked_for(model, candidates, "reranker", "reranker-int8")


def _asked_for(model: str, candidates: str | Path | None, kind: str, experiment: str):
    from kerf.models import families, manifest, registry

    name = wanted()
    if name == "none":
        registry.check_kind(model, f"kerf.{'embedder' if kind == 'encoder' else 'reranker'}", kind)
        return registry.open_model(model)
    folder = Path(candidates or data_folder() / "runs" / experiment) / name
    if not (folder / manifest.CARD).is_file():
        made = f"`kerf run {experiment}` makes those of {experiment.partition('-')[0]}"
        raise refuse("QUANTIZATION_CONFIG", name, f"a candidate in {folder.parent}; {made}")
    card = manifest.verify(folder)
    if card["kind"] != kind:
        raise refuse(
            "candidates",
            str(folder.parent),
            f"candidates of {families.FAMILIES[kind].CALLED}; these are of {families.FAMILIES[card['kind']].CALLED}",
        )
    if card["model"] != model and card.get("origin") != registry.weights_digest(
        registry.resolve(model)
    ):
        raise refuse(
            "candidates", str(folder.parent), f"candidates of {model}; these are of {card['model']}"
        )
    return registry.load(folder)
