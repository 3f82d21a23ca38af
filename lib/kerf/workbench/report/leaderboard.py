"""The leaderboard: every run below a reports folder, every candidate of every run, and what is best among them.

A run that cannot be read is told and hides nothing else. Bests are by the bound of an interval, as gates are: what is
counted on is what a candidate keeps at least. Values of two runs are not paired; `kerf ab` pairs what it can.
"""

import math
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from kerf.evaluate.gates import NOT_MEASURED, run_verdict, standing
from kerf.evaluate.metrics import METRICS
from kerf.workbench.run.history import RESULTS, damage, finished, read
from kerf.workbench.run.record import Damaged, Unreadable

HEADLINES = [
    "cosine_mean",
    "perplexity_ratio",
    "kl_mean",
    "ndcg_10",
    "exact_match",
]  # the first that was measured


def runs(reports: Path) -> list[dict]:
    """One row a run, newest first: key, experiment, started, link, page, and either problem or what the run found."""
    reports, found = Path(reports), {}
    for folder in [
        *(path.parent for path in reports.glob(f"*/{RESULTS}")),
        *finished(reports / "history"),
    ]:
        run = _run(folder, reports)
        found.setdefault(run["key"], run)  # the newest of an experiment also stands in its history
    return sorted(found.values(), key=lambda run: run["started"], reverse=True)


def _run(folder: Path, reports: Path) -> dict:
    inside, page, path = folder.relative_to(reports), folder / "index.html", folder / RESULTS
    run = {
        "key": str(inside),
        "experiment": str(inside).removeprefix("history/"),
        "started": "",
        "problem": None,
        "rows": [],
        "link": quote(str((page if page.is_file() else path).relative_to(reports))),
        "page": page.is_file(),
    }
    with suppress(OSError):
        run["started"] = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()
    try:
        results = read(folder, RESULTS)
        manifest, model = results["manifest"], results["model"]
        if wrong := damage(
            folder,
            RESULTS,
            vouched=reports / "history" / results["experiment"] / str(manifest.get("run")),
        ):
            raise Damaged(wrong)
        own = run | {
            "key": f"{results['experiment']} {manifest.get('run') or manifest['started']}",
            "run": str(manifest.get("run") or ""),
            "experiment": str(results["experiment"]),
            "started": str(manifest["started"]),
            "verdict": _verdict(results),
            "model": str(model["id"]),
            "seconds": float(manifest["seconds"]),
            "release": list(results.get("release") or []),
        }
        return {**own, "rows": [_candidate(candidate, own) for candidate in results["candidates"]]}
    except Damaged as problem:
        return {**run, "problem": f"damaged: {problem}"}
    except Unreadable as problem:
        return {**run, "problem": f"not readable: {RESULTS} {problem}"}
    except (LookupError, TypeError):
        return {**run, "problem": f"not readable: {RESULTS} lacks a part that it should have"}


def _verdict(results: dict) -> str:
    """A run's verdict; judged anew where a release candidate broke, since older files call that FAIL."""
    meant = results.get("release") or []
    broken = any(
        each["name"] in meant and standing(each) == NOT_MEASURED for each in results["candidates"]
    )
    return run_verdict(results["candidates"], meant) if broken else str(results["verdict"])


def _candidate(candidate: dict, run: dict) -> dict:
    measured = {metric["name"]: metric for metric in candidate.get("metrics") or []}
    headline = next((name for name in HEADLINES if name in measured), None)
    return {
        **{key: run[key] for key in ("experiment", "run", "started", "model", "link")},
        "name": str(candidate["name"]),
        "verdict": standing(candidate),
        "grade": candidate.get("grade"),
        "status": candidate.get("status"),
        "bytes": candidate.get("bytes_on_disk"),
        "ratio": candidate.get("compression_ratio"),
        "bits": candidate.get("bits_per_weight"),
        "sparsity": candidate.get("sparsity"),
        "speedup": measured.get("speedup"),
        "headline": headline,
        "fidelity": measured.get(headline),
        "release": candidate["name"] in run["release"],
    }


def candidates(found: list[dict]) -> list[dict]:
    """Every candidate of every run, baselines apart."""
    return [row for run in found for row in run["rows"] if row["name"] != "baseline"]


def newest(rows: list[dict]) -> list[dict]:
    """Of each candidate of an experiment on a model the newest measurement; rows: newest first."""
    kept = {}
    for row in rows:
        kept.setdefault((row["model"], row["experiment"], row["name"]), row)
    return list(kept.values())


def bound(row: dict) -> float | None:
    """What a candidate keeps at least: the worse end of its interval, or the value where it has none."""
    metric = row["fidelity"] or {}
    better = METRICS[row["headline"]].better if row["headline"] in METRICS else "higher"
    end = metric.get("low" if better == "higher" else "high")
    value = metric.get("value") if end is None else end
    return value if value is not None and math.isfinite(value) else None


def better(row: dict, other: float) -> bool:
    """Whether a row's bound is at least as good as a value of its metric."""
    own = bound(row)
    return own is not None and (
        own >= other if METRICS[row["headline"]].better == "higher" else own <= other
    )


def best_within(rows: list[dict], limit: float) -> dict | None:
    """The candidate of the best bound whose weight file has at most `limit` bytes; rows: of one model and headline."""
    fits = [
        row for row in rows if row["bytes"] and row["bytes"] <= limit and bound(row) is not None
    ]
    sign = -1 if fits and METRICS[fits[0]["headline"]].better == "lower" else 1
    return max(fits, key=lambda row: sign * bound(row), default=None)


def smallest(rows: list[dict], least: float) -> dict | None:
    """The smallest candidate whose bound is at least as good as `least`; rows: of one model and headline."""
    return min(
        (row for row in rows if row["bytes"] and better(row, least)),
        key=lambda row: row["bytes"],
        default=None,
    )


def frontier(rows: list[dict]) -> list[dict]:
    """Those that no other beats in both bytes and bound, smallest first."""
    ranked, kept = (
        sorted(
            (row for row in rows if row["bytes"] and bound(row) is not None),
            key=lambda row: row["bytes"],
        ),
        [],
    )
    for row in ranked:
        if not any(better(other, bound(row)) for other in kept):
            kept.append(row)
    return kept


def by_model(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Rows that can be held against one another: of one model, by the same headline."""
    groups = {}
    for row in rows:
        if row["headline"]:
            groups.setdefault((row["model"], row["headline"]), []).append(row)
    return groups


def trends(found: list[dict]) -> dict[str, list[dict]]:
    """For experiments that ran more than once: runs oldest first, with the worst release candidate's fidelity."""
    lines = {}
    for run in reversed([run for run in found if not run["problem"]]):
        meant = [row for row in run["rows"] if row["release"] and bound(row) is not None]
        worst = next(
            (row for row in meant if all(better(other, bound(row)) for other in meant)), None
        )
        lines.setdefault(run["experiment"], []).append(
            {
                "run": run["run"],
                "started": run["started"],
                "verdict": run["verdict"],
                "seconds": run["seconds"],
                "worst": worst,
            }
        )
    return {name: line for name, line in lines.items() if len(line) > 1}


def side_by_side(first: dict, second: dict) -> list[dict]:
    """Candidates of two runs by name, either side None where the run does not have it."""
    sides = [{row["name"]: row for row in run["rows"]} for run in (first, second)]
    return [
        {"name": name, "first": sides[0].get(name), "second": sides[1].get(name)}
        for name in dict.fromkeys([*sides[0], *sides[1]])
    ]
