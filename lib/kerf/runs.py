"""Finished runs by name: what `kerf run` left in the history, to be read again."""

import json
from pathlib import Path

from kerf.errors import nearest, refuse
from kerf.metrics import FIGURES
from kerf.places import root

SCHEMA = 1  # of results.json: the one that is written, and the newest that is read
PARTS = {"candidates": list, "manifest": dict, "model": dict}  # that it cannot do without


def default_out() -> Path:
    """Where runs go without --out: the clone's root."""
    return root()


def history(out: Path) -> Path:
    """Where the runs of `out` lie, one folder an experiment."""
    return out / "reports" / "history"


def runs(out: Path) -> list[Path]:
    """Folders of finished runs, newest first."""
    found = [path.parent for path in history(out).glob("*/*/results.json")]
    return sorted(found, key=lambda path: path.name, reverse=True)


def find(parameter: str, name: str, out: Path):
    """A `kerf.evaluate.sides.Side`: EXPERIMENT/CANDIDATE, of the newest run, or EXPERIMENT/RUN/CANDIDATE.

    parameter: what the name is called in a refusal. Raises Refused, with the nearest names, for one that is not
    there, for a candidate that failed, and for a run that cannot be read.
    """
    experiment, *rest = name.split("/")
    if len(rest) not in (1, 2):
        raise refuse(parameter, name, "EXPERIMENT/CANDIDATE or EXPERIMENT/RUN/CANDIDATE, for example minilm/int8")
    folder = _folder(parameter, name, experiment, rest[:-1], runs(out), out)
    content = _read(parameter, name, folder)
    candidates = {each["name"]: each for each in content["candidates"]}
    if rest[-1] not in candidates:
        raise refuse(parameter, name, f"{nearest(rest[-1], candidates)} (run {folder.name})")
    return _side(parameter, name, folder, content, candidates[rest[-1]])


def _folder(parameter: str, name: str, experiment: str, run: list[str], found: list[Path], out: Path) -> Path:
    own = [path for path in found if path.parent.name == experiment]
    if not own:
        known = {path.parent.name for path in found}
        raise refuse(parameter, name, nearest(experiment, known) if known else f"a finished run; {history(out)} has none")
    chosen = [path for path in own if not run or path.name == run[0]]
    if not chosen:
        raise refuse(parameter, name, nearest(run[0], [path.name for path in own]))
    return chosen[0]


def _read(parameter: str, name: str, folder: Path) -> dict:
    path = folder / "results.json"
    try:
        content = json.loads(path.read_text())
        newer = content["schema"] > SCHEMA
        whole = newer or all(isinstance(content[key], kind) for key, kind in PARTS.items())
    except (OSError, ValueError, KeyError, TypeError):
        newer, whole = False, False
    if not whole:
        raise refuse(parameter, name, f"a run with a readable results.json; {path} is not")
    if newer:
        raise refuse(parameter, name, f"a run of this Kerf or an older one; {path} has schema {content['schema']}, this one reads {SCHEMA}")
    return content


def _side(parameter: str, name: str, folder: Path, content: dict, candidate: dict):
    from kerf.evaluate.sides import Side  # waits for pandas, which a list of runs need not

    if candidate["status"] != "ok":
        error = candidate.get("error") or {}
        raise refuse(parameter, name, f"a candidate that was measured; it {'was skipped' if candidate['status'] == 'skipped' else candidate['status']}: {error.get('message', 'no message')}")
    manifest, settings = content["manifest"], content.get("settings") or {}
    return Side(
        name=name,
        model=content["model"]["id"],
        steps=candidate["steps"],
        rows={row["name"]: row for row in candidate["metrics"]},
        figures={key: candidate[key] for key in FIGURES if candidate.get(key) is not None},
        items=_items(parameter, name, folder / f"{candidate['name']}.parquet"),
        origin={"run": folder.name, "weights": manifest["data"].get("weights"), "evaluation": manifest["data"].get("evaluation"),
                "machine": [manifest["cpu"].get(key) for key in ("model", "threads")],
                "settings": {key: entry["value"] for key, entry in settings.items() if key.startswith("evaluation.")}},
    )  # fmt: skip


def _items(parameter: str, name: str, path: Path):
    import pandas as pd
    import pyarrow as pa

    if not path.is_file():
        raise refuse(parameter, name, f"a run that keeps the scores of its items; {path} is missing, so run it again")
    try:
        return pd.read_parquet(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise refuse(parameter, name, f"a Parquet that can be read; {path} is damaged ({str(error).splitlines()[0][:100]})") from None
