"""Render a run as one self-contained page, and all runs as one list; every figure on them is in results.json."""

import math
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from markupsafe import Markup

from kerf.charts import svg
from kerf.core.atomic import write_page
from kerf.evaluate.metrics import SYMBOLS
from kerf.workbench.report import leaderboard, text_format
from kerf.workbench.report.rendering import TEMPLATES, render
from kerf.workbench.report.serving_report import serving_report

JUDGED = [word for word, _ in text_format.TONES.values()]  # answers that rest on gates
LOG_SCALE = ("kl_mean", "perplexity_ratio")  # metrics that range over powers of ten


def render_report(results: dict, folder: Path, pictures: dict) -> Path:
    """Write folder/index.html from a run's results and `pictures`, the counts of its histograms."""
    candidates = results["candidates"]
    measured = [name for candidate in candidates for name in text_format.metrics_of(candidate)]
    headlines = [name for name in leaderboard.HEADLINES if name in measured]
    headline = next(iter(headlines + measured), None)
    criteria = (results.get("criteria") or [None])[0]
    release = results.get("release") or []
    rows = [_row(candidate, headline, criteria, release) for candidate in candidates]
    parameters = dict.fromkeys(key for row in candidates for key in row.get("parameters") or {})
    page = render(
        "report.html.j2",
        results=results,
        manifest=results.get("manifest") or {},
        rows=rows,
        criteria=criteria,
        on_grid=text_format.layers_by_grid(results.get("model") or {}),
        headline=text_format.describe(headline),
        summary=text_format.summary(rows),
        figures=_figures(rows, headline, pictures or {}),
        parameters=list(parameters),
        service=serving_report(results.get("resources")),
        symbols=SYMBOLS,
        measured=sorted(set(measured)),
    )
    return write_page(Path(folder) / "index.html", page)


def render_index(reports: Path) -> Path:
    """Write reports/index.html: every run below `reports`, readable or not, and the leaderboard of their candidates."""
    runs = leaderboard.runs(Path(reports))
    rows = leaderboard.newest(leaderboard.candidates(runs))
    groups, trends = leaderboard.by_model(rows), leaderboard.trends(runs)
    script = (TEMPLATES / "board.js").read_text(encoding="utf-8")
    page = render(
        "index.html.j2",
        runs=runs,
        rows=rows,
        models=[_best(*key, group, place) for place, (key, group) in enumerate(groups.items())],
        changes=[_trend(*item, runs, place) for place, item in enumerate(trends.items())],
        script=Markup(script),
        digest=b64encode(sha256(script.encode()).digest()).decode(),
    )
    return write_page(Path(reports) / "index.html", page)


def _best(model: str, headline: str, rows: list[dict], place: int) -> dict:
    """The frontier of a model, and a chart of all its candidates."""
    frontier = leaderboard.frontier(rows)
    points = [row if row in frontier else {**row, "name": ""} for row in leaderboard.measured(rows)]
    return {
        "model": model,
        "about": text_format.describe(headline),
        "frontier": [{**row, "bound": leaderboard.bound(row)} for row in frontier],
        "chart": _fidelity_chart(points, headline, f"frontier-{place}"),
    }


def _trend(name: str, line: list[dict], runs: list[dict], place: int) -> dict:
    """An experiment from run to run, and its two newest runs beside each other."""
    readable = [run for run in runs if run["experiment"] == name and not run["problem"]]
    newest, before = readable[:2]
    headlines = [run["worst"]["headline"] for run in reversed(line) if run["worst"]]
    label = text_format.describe(next(iter(headlines), None)).label
    return {
        "name": name,
        "line": line,
        "chart": Markup(svg.trend(line, name, label, f"trend-{place}")),
        "newest": newest,
        "before": before,
        "pairs": leaderboard.side_by_side(before, newest),
    }


def _row(candidate: dict, headline: str | None, criteria: str | None, release: list[str]) -> dict:
    metrics = text_format.metrics_of(candidate)
    judged = [*(candidate.get("gates") or []), *(candidate.get("claims") or [])]
    gates = [text_format.explained(gate, candidate) for gate in judged]
    deciding = [gate for gate in gates if gate["criteria"] == criteria]
    thresholds = [gate["threshold"] for gate in deciding if gate["metric"] == headline]
    without_gate = metrics.keys() - {gate["metric"] for gate in judged}
    verdict = text_format.answer(candidate, deciding)
    return {
        "candidate": candidate,
        "name": candidate["name"],
        "baseline": candidate["name"] == "baseline",
        "gates": deciding,
        "claims": [gate for gate in gates if gate["criteria"] != criteria],
        "others": [row for name, row in metrics.items() if name in without_gate],
        "already_on_grid": sum(bool(row.get("reread")) for row in candidate.get("layers") or []),
        "bytes": candidate.get("bytes_on_disk"),
        "fidelity": metrics.get(headline or ""),
        "speedup": metrics.get("speedup"),
        "release": candidate["name"] in release,
        "steps": [text_format.step_in_words(step) for step in candidate.get("steps") or []],
        "threshold": next(iter(thresholds), None),
        "verdict": candidate["verdict"] if verdict["answer"] in JUDGED else None,
        **verdict,
    }


def _figures(rows: list[dict], headline: str | None, pictures: dict) -> dict:
    """The charts of a report with the numbers that they show."""
    points = []
    for row in rows:
        value = (row["fidelity"] or {}).get("value")
        if row["bytes"] and value is not None and math.isfinite(value):
            points.append(row)
    layers = {row["name"]: row["candidate"].get("layers") for row in rows}
    layers = {name: found for name, found in layers.items() if found}
    similarities, restored = pictures.get("similarities") or {}, pictures.get("restored") or {}
    return {
        "points": points,
        "layers": layers,
        "similarity_counts": similarities,
        "restored": restored,
        "fidelity": _fidelity_chart(points, headline, "fidelity"),
        "by_layer": Markup(svg.by_layer(layers, "error")),
        "by_sparsity": Markup(svg.by_layer(layers, "sparsity")),
        "by_restored": Markup(svg.divergence_by_layer(restored)),
        "similarities": Markup(svg.similarity_distributions(similarities)),
    }


def _fidelity_chart(points: list[dict], headline: str | None, key: str) -> Markup:
    log = headline in LOG_SCALE and all(point["fidelity"]["value"] > 0 for point in points)
    label = text_format.describe(headline).label
    return Markup(svg.fidelity_against_size(points, label, log, key) if points else "")
