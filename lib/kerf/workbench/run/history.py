"""Finished runs by name: what `kerf run` left in the history, to be read again.

SHA256SUMS, written last, vouches for a run's files, and nothing that it does not vouch for is read. A run of an older
Kerf has none and is taken as it stands.
"""

import os
from pathlib import Path

from kerf.config.by_method import OLD_KEYS, renamed
from kerf.core import digests
from kerf.core.errors import nearest, refuse
from kerf.core.paths import root
from kerf.evaluate.metrics import FIGURES
from kerf.workbench.run import record

SUMS, RESULTS = "SHA256SUMS", "results.json"
COLUMNS = {"metric", "baseline", "candidate"}  # of a table of items, at least


def default_out() -> Path:
    """Where runs go without --out: the clone's root."""
    return root()


def history(out: Path) -> Path:
    """Where the runs of `out` lie, one folder an experiment."""
    return out / "reports" / "history"


def runs(out: Path) -> list[Path]:
    """Folders of finished runs, newest first."""
    return finished(history(out))


def finished(folder: Path) -> list[Path]:
    """Runs below a history, newest first; also one that has lost its results.json since."""
    found = {path.parent for name in (RESULTS, SUMS) for path in folder.glob(f"*/*/{name}")}
    return sorted(found, key=lambda path: path.name, reverse=True)


def record_digests(folder: Path) -> None:
    """Write SHA256SUMS of a run whose other files are all there, as `sha256sum --check` reads it; results.json is its last line."""
    found = digests.digests(folder, [SUMS])
    lines = [f"{found[name]}  {name}\n" for name in sorted(found, key=lambda name: name == RESULTS)]
    (folder / SUMS).write_text("".join(lines))


def damage(folder: Path, *names: str, vouched: Path | None = None) -> str:
    """What is wrong with files of a run, by default all; empty when nothing is, or nothing vouches for them.

    vouched: the run in the history, where `folder` is a copy of its results.json.
    """
    path = (vouched or folder) / SUMS
    if not os.path.lexists(path):
        return ""
    expected = _sums(path)
    if not expected:
        return f"{SUMS} is damaged"
    found = {
        name: digests.differing(folder / name, expected.get(name)) for name in names or expected
    }
    return next((f"{name} {wrong}" for name, wrong in found.items() if wrong), "")


def _sums(path: Path) -> dict[str, str]:
    """sha256 by name; empty for a file that is not whole, which ends with results.json."""
    try:
        text = path.read_text() if path.is_file() else ""
        return (
            {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}
            if text.endswith(f"  {RESULTS}\n")
            else {}
        )
    except (OSError, ValueError):
        return {}


def read(folder: Path, *names: str) -> dict:
    """results.json of a run, once it and `names` (default: every file of the run) are found to be as they were written.

    Raises kerf.workbench.run.record.Damaged, naming the file, and kerf.workbench.run.record.Unreadable.
    """
    if wrong := damage(folder, *([RESULTS, *names] if names else [])):
        raise record.Damaged(wrong)
    content = record.read(folder / RESULTS)
    if content["manifest"].get("digests") and not os.path.lexists(folder / SUMS):
        raise record.Damaged(f"{SUMS} is missing")
    return content


def find(parameter: str, name: str, out: Path):
    """A `kerf.evaluate.comparison_inputs.ComparisonInput`: EXPERIMENT/CANDIDATE, of the newest run, or EXPERIMENT/RUN/CANDIDATE.

    parameter: what the name is called in a refusal. Raises InputError, with the nearest names, for one that is not
    there, for a candidate that failed, and for a run that cannot be read.
    """
    experiment, *rest = name.split("/")
    if len(rest) not in (1, 2):
        raise refuse(
            parameter,
            name,
            "EXPERIMENT/CANDIDATE or EXPERIMENT/RUN/CANDIDATE, for example minilm/int8",
        )
    folder = _folder(parameter, name, experiment, rest[:-1], runs(out), out)
    content = _read(parameter, name, folder)
    candidates = {each["name"]: each for each in content["candidates"]}
    if rest[-1] not in candidates:
        raise refuse(parameter, name, f"{nearest(rest[-1], candidates)} (run {folder.name})")
    return _side(parameter, name, folder, content, candidates[rest[-1]])


def _folder(
    parameter: str, name: str, experiment: str, run: list[str], found: list[Path], out: Path
) -> Path:
    own = [path for path in found if path.parent.name == experiment]
    if not own:
        known = {path.parent.name for path in found}
        raise refuse(
            parameter,
            name,
            nearest(experiment, known) if known else f"a finished run; {history(out)} has none",
        )
    chosen = [path for path in own if not run or path.name == run[0]]
    if not chosen:
        raise refuse(parameter, name, nearest(run[0], [path.name for path in own]))
    return chosen[0]


def _read(parameter: str, name: str, folder: Path) -> dict:
    try:
        return read(folder, RESULTS)
    except record.Damaged as problem:
        raise refuse(
            parameter,
            name,
            f"a run as it was written; {folder} is damaged ({problem}), so run it again",
        ) from None
    except record.Unreadable as problem:
        raise refuse(
            parameter, name, f"a run with a readable results.json; that of {folder} {problem}"
        ) from None


def _side(parameter: str, name: str, folder: Path, content: dict, candidate: dict):
    from kerf.evaluate.comparison_inputs import (
        ComparisonInput,  # waits for pandas, which a list of runs need not
    )

    if candidate.get("status") != "ok":
        error = candidate.get("error") or {}
        how = "was skipped" if candidate.get("status") == "skipped" else candidate.get("status")
        raise refuse(
            parameter,
            name,
            f"a candidate that was measured; it {how}: {error.get('message', 'no message')}",
        )
    settings = content.get("settings") or {}
    data, cpu = (content["manifest"].get(key) or {} for key in ("data", "cpu"))
    return ComparisonInput(
        name=name,
        model=content["model"]["id"],
        steps=[renamed(step) for step in candidate.get("steps") or []],
        rows={
            row["name"]: row for row in candidate.get("metrics") or [] if row["value"] is not None
        },
        figures={key: candidate[key] for key in FIGURES if candidate.get(key) is not None},
        items=_items(parameter, name, folder / f"{candidate['name']}.parquet"),
        origin={
            "run": folder.name,
            "weights": data.get("weights"),
            "evaluation": data.get("evaluation"),
            "machine": [cpu.get(key) for key in ("model", "threads")],
            "settings": {
                _today(key): entry["value"]
                for key, entry in settings.items()
                if key.startswith("evaluation.")
            },
        },
    )


def _today(key: str) -> str:
    """A key of the settings by its name of today."""
    section, _, name = key.rpartition(".")
    return f"{section}.{OLD_KEYS.get(name, name)}"


def _items(parameter: str, name: str, path: Path):
    import pandas as pd
    import pyarrow as pa

    if wrong := damage(path.parent, path.name):
        raise refuse(
            parameter,
            name,
            f"a run as it was written; {path.parent} is damaged ({wrong}), so run it again",
        )
    if not path.is_file():
        raise refuse(
            parameter,
            name,
            f"a run that keeps the scores of its items; {path} is missing, so run it again",
        )
    try:
        table = pd.read_parquet(path)
        if not {*table.columns} >= COLUMNS:
            raise ValueError("its columns are not those of a table of items")
        return table
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise refuse(
            parameter,
            name,
            f"a Parquet that can be read; {path} is damaged ({(str(error).splitlines() or [''])[0][:100]})",
        ) from None
