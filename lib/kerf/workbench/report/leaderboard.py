"""The leaderboard: every run below a reports folder, every candidate of every run, and the best of them.

Candidates are ranked by the worse end of their interval, as gates judge them. Values of two runs are not paired.
"""

import math
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kerf.evaluate.gates import NOT_MEASURED, PASS, run_verdict, standing
from kerf.workbench.report.text_format import describe, is_finite, metrics_of
from kerf.workbench.run.history import RESULTS, Damaged, Unreadable, damage, read, run_folders

# Metrics of fidelity; the first that was measured is a candidate's headline.
HEADLINES = ("cosine_mean", "perplexity_ratio", "kl_mean", "ndcg_10", "exact_match")
# A candidate's figures: their keys in a row, and in results.json.
FIGURES = {"grade": "grade", "bytes": "bytes_on_disk", "ratio": "compression_ratio"}
FIGURES |= {"bits": "bits_per_weight"}


def runs(reports: Path) -> list[dict]:
    """One row per run, newest first: key, experiment, started, link, page, rows (candidates), and a problem or None."""
    folders = [path.parent for path in reports.glob(f"*/{RESULTS}")]
    unique: dict[str, dict] = {}
    for folder in [*folders, *run_folders(reports / "history")]:
        run = _run(folder, reports)
        unique.setdefault(run["key"], run)  # the newest of an experiment is also in its history
    return sorted(unique.values(), key=lambda run: run["started"], reverse=True)


def _run(folder: Path, reports: Path) -> dict:
    """The row of a run; one that cannot be read is listed with its problem and hides no other run."""
    key, path, page = str(folder.relative_to(reports)), folder / RESULTS, folder / "index.html"
    link = quote(str((page if page.is_file() else path).relative_to(reports)))
    run: dict[str, Any] = {"key": key, "experiment": key.removeprefix("history/"), "started": ""}
    run |= {"problem": None, "rows": [], "link": link, "page": page.is_file()}
    with suppress(OSError):
        run["started"] = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()
    try:
        return run | _content(folder, reports, link)
    except Damaged as error:
        run["problem"] = f"damaged: {error}"
    except Unreadable as error:
        run["problem"] = f"not readable: {RESULTS} {error}"
    except (LookupError, TypeError):
        run["problem"] = f"not readable: {RESULTS} lacks a part that it should have"
    return run


def _content(folder: Path, reports: Path, link: str) -> dict:
    """The part of a run's row that is read from its results.json."""
    results = read(folder, RESULTS)
    manifest, experiment = results["manifest"], str(results["experiment"])
    name = manifest.get("run")
    if problem := damage(folder, RESULTS, vouched=reports / "history" / experiment / str(name)):
        raise Damaged(problem)
    started = str(manifest["started"])
    release, candidates = list(results.get("release") or []), results["candidates"]
    released = [candidate for candidate in candidates if candidate["name"] in release]
    broken = any(standing(candidate) == NOT_MEASURED for candidate in released)
    shared: dict[str, Any] = {"experiment": experiment, "run": str(name or ""), "started": started}
    shared |= {"model": str(results["model"]["id"]), "release": release}
    return shared | {
        "key": f"{experiment} {name or started}",
        "seconds": float(manifest["seconds"]),
        # An older file calls a run FAIL that has a broken release candidate.
        "verdict": run_verdict(candidates, release) if broken else str(results["verdict"]),
        "rows": [_candidate(candidate, shared | {"link": link}) for candidate in candidates],
    }


def _candidate(candidate: dict, shared: dict) -> dict:
    metrics = metrics_of(candidate)
    headline = next((name for name in HEADLINES if name in metrics), None)
    name, verdict = str(candidate["name"]), standing(candidate)
    row = shared | {"name": name, "verdict": verdict, "release": name in shared["release"]}
    row |= {"headline": headline, "fidelity": metrics.get(headline or "")}
    uses = candidate.get("uses") or {}
    row["uses"] = [use for use, verdict in uses.items() if verdict == PASS]  # it may be used for
    figures = {key: candidate.get(figure) for key, figure in FIGURES.items()}
    return row | figures | {"speedup": metrics.get("speedup")}


def candidates(runs: list[dict]) -> list[dict]:
    """Every candidate of every run, without baselines."""
    return [row for run in runs for row in run["rows"] if row["name"] != "baseline"]


def newest(rows: list[dict]) -> list[dict]:
    """The newest measurement of each candidate of an experiment on a model; rows: newest first."""
    unique: dict[tuple[str, str, str], dict] = {}
    for row in rows:
        unique.setdefault((row["model"], row["experiment"], row["name"]), row)
    return list(unique.values())


def bound(row: dict) -> float | None:
    """The worse end of a candidate's interval, or its value where it has no interval."""
    metric = row["fidelity"] or {}
    end = metric.get("high" if _sign(row) < 0 else "low")
    value = metric.get("value") if end is None else end
    return value if is_finite(value) else None


def _sign(row: dict) -> int:
    """-1 where a lower headline metric is better."""
    return -1 if describe(row["headline"]).better == "lower" else 1


def _score(row: dict) -> float:
    """The bound, negated where lower is better; -inf where there is none."""
    value = bound(row)
    return -math.inf if value is None else _sign(row) * value


def measured(rows: list[dict]) -> list[dict]:
    """Candidates that have a size and a bound, smallest first."""
    known = (row for row in rows if row["bytes"] and bound(row) is not None)
    return sorted(known, key=lambda row: row["bytes"])


def best_within(rows: list[dict], limit: float) -> dict | None:
    """The candidate with the best bound in at most `limit` bytes; rows: of one model and headline."""
    small = [row for row in measured(rows) if row["bytes"] <= limit]
    return max(small, key=_score, default=None)


def smallest(rows: list[dict], least: float) -> dict | None:
    """The smallest candidate whose bound is at least as good as `least`; rows: of one model and headline."""
    return next((row for row in measured(rows) if _score(row) >= _sign(row) * least), None)


def frontier(rows: list[dict]) -> list[dict]:
    """Candidates that no other beats in both bytes and bound, smallest first."""
    ahead: list[dict] = []
    for row in measured(rows):
        if not ahead or _score(row) > _score(ahead[-1]):
            ahead.append(row)
    return ahead


def by_model(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Comparable rows: by model and headline metric."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        if row["headline"]:
            groups.setdefault((row["model"], row["headline"]), []).append(row)
    return groups


def trends(runs: list[dict]) -> dict[str, list[dict]]:
    """Of experiments that ran more than once: runs, oldest first, each with its worst release candidate (`worst`)."""
    lines: dict[str, list[dict]] = {}
    for run in reversed([run for run in runs if not run["problem"]]):
        released = [row for row in run["rows"] if row["release"] and bound(row) is not None]
        point = {key: run[key] for key in ("run", "started", "verdict", "seconds")}
        point["worst"] = min(released, key=_score, default=None)
        lines.setdefault(run["experiment"], []).append(point)
    return {name: line for name, line in lines.items() if len(line) > 1}


def side_by_side(first: dict, second: dict) -> list[dict]:
    """Candidates of two runs by name; None for a run that does not have the candidate."""
    before, after = ({row["name"]: row for row in run["rows"]} for run in (first, second))
    names = dict.fromkeys([*before, *after])
    return [{"name": name, "first": before.get(name), "second": after.get(name)} for name in names]
