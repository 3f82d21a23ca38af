"""results.json as it is read back: which parts it cannot do without, and of what type each is.

A file of an older Kerf may lack the others, and what is not named here is taken as it stands.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kerf.core.digests import read_json

SCHEMA = 1  # of results.json: the one that is written, and the newest that is read
Bytes = Annotated[int, Field(ge=0)]


class Unreadable(ValueError):
    """A run whose results.json cannot be read, and why: `str` of it goes on where "its results.json" ends."""


class Damaged(Unreadable):
    """A run with a file that is no longer as it was written: `str` of it names the file."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Metric(_Part):
    name: str
    value: float | None
    low: float | None
    high: float | None
    baseline: float | None = None
    n: int | None = None
    noise: dict[str, float | None] | None = None


class _Candidate(_Part):
    name: str
    status: str | None = None
    error: dict | None = None
    verdict: str | None = None
    grade: str | None = None
    steps: list[dict] | None = None
    metrics: list[_Metric] | None = None
    bytes_on_disk: Bytes | None = None
    bits_per_weight: float | None = None
    linear_bits: float | None = None
    compression_ratio: float | None = None
    sparsity: float | None = None
    compress_seconds: float | None = None
    compress_peak_rss_bytes: float | None = None


class _Model(_Part):
    id: str


class _Manifest(_Part):
    run: str | None = None
    started: str | None = None
    seconds: float | None = None
    data: dict | None = None
    cpu: dict | None = None


class _Setting(_Part):
    value: Any


class _Results(_Part):
    experiment: str | None = None
    verdict: str | None = None
    release: list[str] | None = None
    model: _Model
    candidates: list[_Candidate]
    settings: dict[str, _Setting] | None = None
    manifest: _Manifest


def read(path: Path) -> dict:
    """Content of a results.json. Raises Unreadable, naming the part that is missing or of a wrong type."""
    try:
        content = read_json(path, _no_number)
        schema = content["schema"]
        if schema <= SCHEMA:
            _Results.model_validate(content)
    except ValidationError as error:
        raise Unreadable(_wrong(error)) from None
    except OSError:
        raise Unreadable("cannot be opened") from None
    except ValueError:
        raise Unreadable("is not valid JSON") from None
    except (LookupError, TypeError):
        raise Unreadable("lacks a part that it should have (schema)") from None
    if schema > SCHEMA:
        raise Unreadable(f"is of a newer Kerf (it has schema {schema}, this one reads {SCHEMA})")
    return content


def _no_number(text: str):
    raise ValueError(text)


def _wrong(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    missing = first["type"] == "missing"
    return (
        f"lacks a part that it should have ({path})" if missing else f"has a {path} of a wrong kind"
    )
