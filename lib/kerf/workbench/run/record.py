"""The schema of results.json for reading: required parts, and the types of known parts.

A file of an older Kerf may lack the optional parts. Parts that are not listed are not checked.
"""

from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kerf.core.digests import read_json

SCHEMA = 1  # of results.json: the one that is written, and the newest that is read


class Unreadable(ValueError):
    """A run whose results.json cannot be read; `str` of it continues a sentence that begins with "its results.json"."""


class Damaged(Unreadable):
    """A run with a file that has changed since it was written; `str` of it names the file."""


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
    bytes_on_disk: Annotated[int, Field(ge=0)] | None = None
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
    """Content of a results.json. Raises Unreadable, naming the part that is missing or has a wrong type."""
    content: Any
    try:
        content = read_json(path, _refuse_constant)
        schema = content["schema"]
        if schema <= SCHEMA:
            _Results.model_validate(content)
            return content
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        part = ".".join(map(str, first["loc"]))
        missing = first["type"] == "missing"
        problem = f"lacks a required part ({part})" if missing else f"has a {part} of a wrong type"
    except OSError:
        problem = "cannot be opened"
    except ValueError:
        problem = "is not valid JSON"
    except (LookupError, TypeError):
        problem = "lacks a required part (schema)"
    else:
        problem = f"is of a newer Kerf (it has schema {schema}, this one reads {SCHEMA})"
    raise Unreadable(problem)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)  # NaN and infinities are not JSON
