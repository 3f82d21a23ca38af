"""The switch of a service: which encoder it gets, by two variables of its environment.

USE_QUANTIZATION=true|false turns it on, QUANTIZATION_CONFIG=int8|int4|none says which. A service calls
`kerf.embedder()` where it made a SentenceTransformer, and uses what it gets as one.
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from kerf.errors import refuse
from kerf.places import data_folder

ACCEPTED = {"use_quantization": "true or false", "quantization_config": "int8, int4 or none"}


class Switch(BaseSettings):
    """What the environment says."""

    use_quantization: bool = False
    quantization_config: Literal["int8", "int4", "none"] = "int8"


def wanted() -> str:
    """int8, int4 or none. Raises Refused for a value that is not accepted, naming the variable."""
    try:
        switch = Switch()
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise refuse(key.upper(), first["input"], ACCEPTED[key]) from None
    return switch.quantization_config if switch.use_quantization else "none"


def embedder(model: str = "minilm", candidates: str | Path | None = None):
    """The encoder that the environment asks for: the candidate int8 or int4 of a directory, or the model in float.

    candidates: a directory of an experiment's candidates, default that of `minilm-int8`. Raises Refused for a wrong
    value, a candidate that is not there, and one that was made of another model.
    """
    from kerf import models, seal

    name = wanted()
    if name == "none":
        return models.open_model(model)
    folder = Path(candidates or data_folder() / "runs" / "minilm-int8") / name
    if not (folder / seal.CARD).is_file():
        raise refuse("QUANTIZATION_CONFIG", name, f"a candidate in {folder.parent}; `kerf run minilm-int8` makes those of minilm")
    card = seal.verify(folder)
    if card["model"] != model and card.get("origin") != models.weights_digest(models.resolve(model)):
        raise refuse("candidates", str(folder.parent), f"candidates of {model}; these are of {card['model']}")
    return models.load(folder)
