"""Finished runs in the history, by name.

SHA256SUMS, written last, holds the digests of a run's files; a file that it does not confirm is not read. A run of an older
Kerf has no SHA256SUMS and is read unchecked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kerf.config.by_method import OLD_KEYS, renamed
from kerf.core import digests
from kerf.core.errors import InputError, nearest, refuse
from kerf.core.paths import root
from kerf.evaluate.metrics import FIGURES
from kerf.workbench.run import record

if TYPE_CHECKING:
    import pandas as pd

    from kerf.evaluate.comparison_inputs import ComparisonInput

SUMS, RESULTS = "SHA256SUMS", "results.json"
COLUMNS = {"metric", "baseline", "candidate"}  # required in a table of per-item scores
Refused = Callable[[str], InputError]  # builds the refusal of a name from what is accepted


def default_out() -> Path:
    """Folder of runs without --out: the clone's root."""
    return root()


def history(out: Path) -> Path:
    """Folder of the finished runs in `out`, with one folder per experiment."""
    return out / "reports" / "history"


def finished(folder: Path) -> list[Path]:
    """Folders of the finished runs in a history, newest first; also of runs that have lost their results.json."""
    runs = {path.parent for name in (RESULTS, SUMS) for path in folder.glob(f"*/*/{name}")}
    return sorted(runs, key=lambda path: path.name, reverse=True)


def record_digests(folder: Path) -> None:
    """Write SHA256SUMS for a run's files, in the format of `sha256sum --check`; results.json is its last line."""
    sums = digests.digests(folder, [SUMS])
    lines = [f"{sums[name]}  {name}\n" for name in sorted(sums, key=lambda name: name == RESULTS)]
    (folder / SUMS).write_text("".join(lines))


def damage(folder: Path, *names: str, vouched: Path | None = None) -> str:
    """The first damaged file of a run, of `names` or by default all, and its damage; empty for none, and without SHA256SUMS.

    vouched: the run in the history, if `folder` holds a copy of its results.json.
    """
    path = (vouched or folder) / SUMS
    if not os.path.lexists(path):
        return ""
    sums = _read_sums(path)
    if not sums:
        return f"{SUMS} is damaged"
    for name in names or sums:
        if wrong := digests.differing(folder / name, sums.get(name)):
            return f"{name} {wrong}"
    return ""


def _read_sums(path: Path) -> dict[str, str]:
    """sha256 by name; empty for an incomplete file, which does not end with results.json."""
    try:
        text = path.read_text() if path.is_file() else ""
        if not text.endswith(f"  {RESULTS}\n"):
            return {}
        return {
            name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())
        }
    except (OSError, ValueError):
        return {}


def read(folder: Path, *names: str) -> dict:
    """results.json of a run, after a check of its digest and those of `names` (default: every file of the run).

    Raises kerf.workbench.run.record.Damaged, naming the file, and kerf.workbench.run.record.Unreadable.
    """
    if wrong := damage(folder, *([RESULTS, *names] if names else [])):
        raise record.Damaged(wrong)
    content = record.read(folder / RESULTS)
    if content["manifest"].get("digests") and not os.path.lexists(folder / SUMS):
        raise record.Damaged(f"{SUMS} is missing")
    return content


def find(parameter: str, name: str, out: Path) -> ComparisonInput:
    """The candidate EXPERIMENT/CANDIDATE of the newest run, or EXPERIMENT/RUN/CANDIDATE, as an input of a comparison.

    parameter: the command-line argument, for refusals. Raises InputError, with the nearest names, for an unknown name, for
    a candidate that failed, and for a run that cannot be read.
    """
    refused = partial(refuse, parameter, name)
    experiment, *rest = name.split("/")
    if len(rest) not in (1, 2):
        example = "for example minilm/int8"
        raise refused(f"EXPERIMENT/CANDIDATE or EXPERIMENT/RUN/CANDIDATE, {example}")
    folder = _find_run(experiment, rest[:-1], out, refused)
    try:
        content = read(folder, RESULTS)
        candidates = {row["name"]: row for row in content["candidates"]}
        if rest[-1] not in candidates:
            raise refused(f"{nearest(rest[-1], candidates)} (run {folder.name})")
        return _comparison_input(name, folder, content, candidates[rest[-1]], refused)
    except record.Damaged as problem:
        advice = f"{folder} is damaged ({problem}), so run it again"
        raise refused(f"a run as it was written; {advice}") from None
    except record.Unreadable as problem:
        raise refused(f"a run with a readable results.json; that of {folder} {problem}") from None


def _find_run(experiment: str, run: list[str], out: Path, refused: Refused) -> Path:
    """The newest run of an experiment, or the run that is named."""
    all_runs = finished(history(out))
    runs = {path.name: path for path in all_runs if path.parent.name == experiment}
    if not all_runs:
        raise refused(f"a finished run; {history(out)} has none")
    if not runs:
        raise refused(nearest(experiment, {path.parent.name for path in all_runs}))
    name = run[0] if run else next(iter(runs))
    if name not in runs:
        raise refused(nearest(name, runs))
    return runs[name]


def _comparison_input(
    name: str, folder: Path, content: dict, candidate: dict, refused: Refused
) -> ComparisonInput:
    from kerf.evaluate.comparison_inputs import ComparisonInput  # imports pandas

    status = candidate.get("status")
    if status != "ok":
        message = (candidate.get("error") or {}).get("message", "no message")
        status = "was skipped" if status == "skipped" else status
        raise refused(f"a candidate that was measured; it {status}: {message}")
    settings = {}
    for path, entry in (content.get("settings") or {}).items():
        section, _, key = path.rpartition(".")
        if section == "evaluation":
            settings[f"evaluation.{OLD_KEYS.get(key, key)}"] = entry["value"]
    data, cpu = (content["manifest"].get(key) or {} for key in ("data", "cpu"))
    metrics = candidate.get("metrics") or []
    return ComparisonInput(
        name=name,
        model=content["model"]["id"],
        steps=[renamed(step) for step in candidate.get("steps") or []],
        rows={row["name"]: row for row in metrics if row["value"] is not None},
        figures={key: candidate[key] for key in FIGURES if candidate.get(key) is not None},
        items=_read_items(folder / f"{candidate['name']}.parquet", refused),
        origin={
            "run": folder.name,
            "weights": data.get("weights"),
            "evaluation": data.get("evaluation"),
            "machine": [cpu.get(key) for key in ("model", "threads")],
            "settings": settings,
        },
    )


def _read_items(path: Path, refused: Refused) -> pd.DataFrame:
    """The table of per-item scores."""
    import pandas as pd
    import pyarrow as pa

    if wrong := damage(path.parent, path.name):
        raise record.Damaged(wrong)
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
