"""Finished runs in the history: only files that SHA256SUMS confirms are read; a run of an older Kerf has no SHA256SUMS."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kerf.config.methods import OLD_KEYS, renamed
from kerf.core import digests
from kerf.core.errors import InputError, nearest, refuse
from kerf.core.paths import root
from kerf.evaluate.metrics import FIGURES

if TYPE_CHECKING:
    import pandas as pd

    from kerf.evaluate.comparison_inputs import ComparisonInput

SCHEMA = 1  # of results.json: the one that is written, and the newest that is read
SUMS, RESULTS = "SHA256SUMS", "results.json"
COLUMNS = {"metric", "baseline", "candidate"}  # required in a table of per-item scores
Refused = Callable[[str], InputError]  # builds the refusal of a name from what is accepted


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


def default_out() -> Path:
    """Folder of runs without --out: the clone's root."""
    return root()


def history(out: Path) -> Path:
    """Folder of the finished runs in `out`, with one folder per experiment."""
    return out / "reports" / "history"


def run_folders(folder: Path) -> list[Path]:
    """Folders of the finished runs in a history, newest first; also of runs that have lost their results.json."""
    runs = {path.parent for name in (RESULTS, SUMS) for path in folder.glob(f"*/*/{name}")}
    return sorted(runs, key=lambda path: path.name, reverse=True)


def record_digests(folder: Path) -> None:
    """Write SHA256SUMS for a run's files, in the format of `sha256sum --check`; results.json is its last line."""
    sums = digests.digests(folder, [SUMS])
    lines = [f"{sums[name]}  {name}\n" for name in sorted(sums, key=lambda name: name == RESULTS)]
    (folder / SUMS).write_text("".join(lines))


def damage(folder: Path, *names: str, vouched: Path | None = None) -> str:
    """The first damaged file, of `names` or all, and its damage, else ""; vouched: the run of which `folder` holds a copy."""
    path = (vouched or folder) / SUMS
    if not os.path.lexists(path):
        return ""
    sums: dict[str, str] = {}
    with suppress(OSError, ValueError):
        text = path.read_text() if path.is_file() else ""
        if text.endswith(f"  {RESULTS}\n"):  # else the file is incomplete
            lines = (line.split("  ", 1) for line in text.splitlines())
            sums = {name: digest for digest, name in lines}
    if not sums:
        return f"{SUMS} is damaged"
    for name in names or sums:
        if wrong := digests.file_damage(folder / name, sums.get(name)):
            return f"{name} {wrong}"
    return ""


def read(folder: Path, *names: str) -> dict:
    """results.json of a run, after a check of its digest and those of `names` (default: every file). Raises Unreadable."""
    if wrong := damage(folder, *([RESULTS, *names] if names else [])):
        raise Damaged(wrong)
    content = _read_results(folder / RESULTS)
    if content["manifest"].get("digests") and not os.path.lexists(folder / SUMS):
        raise Damaged(f"{SUMS} is missing")
    return content


def _read_results(path: Path) -> dict:
    """Content of a results.json. Raises Unreadable, naming the part that is missing or has a wrong type."""
    content: Any
    try:
        content = digests.read_json(path, int)  # int refuses NaN and infinities, which are not JSON
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


def find(parameter: str, name: str, out: Path) -> ComparisonInput:
    """The candidate EXPERIMENT/CANDIDATE of the newest run, or EXPERIMENT/RUN/CANDIDATE, as an input of a comparison.

    Raises InputError that names `parameter`: an unknown name, a candidate that failed, a run that cannot be read.
    """
    refused = partial(refuse, parameter, name)
    experiment, *rest = name.split("/")
    if len(rest) not in (1, 2):
        raise refused("EXPERIMENT/CANDIDATE or EXPERIMENT/RUN/CANDIDATE, for example minilm/int8")
    all_runs = run_folders(history(out))
    runs = {path.name: path for path in all_runs if path.parent.name == experiment}
    if not all_runs:
        raise refused(f"a finished run; {history(out)} has none")
    if not runs:
        raise refused(nearest(experiment, {path.parent.name for path in all_runs}))
    run = rest[0] if len(rest) == 2 else next(iter(runs))  # by default the newest
    if run not in runs:
        raise refused(nearest(run, runs))
    folder = runs[run]
    try:
        content = read(folder, RESULTS)
        candidates = {row["name"]: row for row in content["candidates"]}
        if rest[-1] not in candidates:
            raise refused(f"{nearest(rest[-1], candidates)} (run {folder.name})")
        return _input(name, folder, content, candidates[rest[-1]], refused)
    except Damaged as problem:
        advice = f"{folder} is damaged ({problem}), so run it again"
        raise refused(f"a run as it was written; {advice}") from None
    except Unreadable as problem:
        raise refused(f"a run with a readable results.json; that of {folder} {problem}") from None


def _input(name: str, folder: Path, content: dict, row: dict, refused: Refused) -> ComparisonInput:
    from kerf.evaluate.comparison_inputs import ComparisonInput, keyed  # imports pandas

    if (status := row.get("status")) != "ok":
        message = (row.get("error") or {}).get("message", "no message")
        status = "was skipped" if status == "skipped" else status
        raise refused(f"a candidate that was measured; it {status}: {message}")
    settings = {}
    for path, entry in (content.get("settings") or {}).items():
        section, _, key = path.rpartition(".")
        if section == "evaluation":
            settings[f"evaluation.{OLD_KEYS.get(key, key)}"] = entry["value"]
    data, cpu = (content["manifest"].get(key) or {} for key in ("data", "cpu"))
    origin = {key: data.get(key) for key in ("weights", "evaluation")}
    origin |= {"machine": [cpu.get(key) for key in ("model", "threads")], "settings": settings}
    metrics = row.get("metrics") or []
    return ComparisonInput(
        name=name,
        model=content["model"]["id"],
        steps=[renamed(step) for step in row.get("steps") or []],
        rows=keyed([metric for metric in metrics if metric["value"] is not None]),
        figures={key: row[key] for key in FIGURES if row.get(key) is not None},
        items=_read_items(folder / f"{row['name']}.parquet", refused),
        origin={"run": folder.name, **origin},
    )


def _read_items(path: Path, refused: Refused) -> pd.DataFrame:
    """The table of per-item scores."""
    import pandas as pd
    import pyarrow as pa

    if wrong := damage(path.parent, path.name):
        raise Damaged(wrong)
    if not path.is_file():
        raise refused(f"a run with per-item scores; {path} is missing, so run it again")
    try:
        table = pd.read_parquet(path)
        if not {*table.columns} >= COLUMNS:
            raise ValueError("its columns are not those of per-item scores")
        return table
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        problem = (str(error).splitlines() or [""])[0][:100]
        raise refused(f"a Parquet that can be read; {path} is damaged ({problem})") from None
