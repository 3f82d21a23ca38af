"""`embedder` and `reranker` open what two environment variables select: USE_QUANTIZATION=true|false turns compressed candidates on,
QUANTIZATION_CONFIG=int8|int4|none names the candidate."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from kerf.core.errors import refuse
from kerf.core.paths import data_folder
from kerf.models import families, manifest, registry

ACCEPTED = {"use_quantization": "true or false", "quantization_config": "int8, int4 or none"}


class Switch(BaseSettings):
    """The two environment variables."""

    use_quantization: bool = False
    quantization_config: Literal["int8", "int4", "none"] = "int8"


def embedder(model: str = "minilm", candidates: str | Path | None = None) -> Any:
    """The encoder that the environment selects: a SentenceTransformer, or a candidate with the same `encode`.

    model: a name of `kerf list models`, a hub id or a local directory. candidates: the directory with the candidates int8 and
    int4, by default that of the experiment `minilm-int8`. Raises InputError for a wrong value of a variable, a missing candidate,
    and a candidate of another model.
    """
    return _selected(model, candidates, "encoder", "embedder", "minilm-int8")


def reranker(model: str = "reranker", candidates: str | Path | None = None) -> Any:
    """The reranker that the environment selects, as `embedder`: a CrossEncoder, or a candidate with its `predict` and `rank`."""
    return _selected(model, candidates, "reranker", "reranker", "reranker-int8")


def _selected(
    model: str, candidates: str | Path | None, kind: str, call: str, experiment: str
) -> Any:
    try:
        switch = Switch()
    except ValidationError as error:
        first = error.errors()[0]
        variable = str(first["loc"][0])
        raise refuse(variable.upper(), first["input"], ACCEPTED[variable]) from None
    name = switch.quantization_config
    if not switch.use_quantization or name == "none":
        registry.check_family(model, f"kerf.{call}", kind)
        return registry.open_model(model)
    folder = Path(candidates or data_folder() / "runs" / experiment) / name
    if not (folder / manifest.CARD).is_file():
        made = f"`kerf run {experiment}` makes those of {experiment.partition('-')[0]}"
        raise refuse("QUANTIZATION_CONFIG", name, f"a candidate in {folder.parent}; {made}")
    card = manifest.verify(folder)
    digest = card.get("origin")
    if card["kind"] != kind:
        expected, actual = (families.FAMILIES[name].CALLED for name in (kind, card["kind"]))
    elif model == card["model"] or registry.weights_digest(registry.resolve(model)) == digest:
        return registry.load(folder)
    else:
        expected, actual = model, card["model"]
    accepted = f"candidates of {expected}; these are of {actual}"
    raise refuse("candidates", str(folder.parent), accepted)
