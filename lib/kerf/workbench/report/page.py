"""Render a run as one self-contained page, and all runs as one list.

Everything on the page is in results.json. Not here: measuring, judging, drawing.
"""

import math
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from kerf.charts import svg
from kerf.core.atomic import write_page
from kerf.evaluate.metrics import SYMBOLS
from kerf.workbench.report import leaderboard
from kerf.workbench.report.serving_report import laid_out
from kerf.workbench.report.text_format import (
    TONES,
    answer,
    describe,
    explained,
    interval,
    moment,
    number,
    step_in_words,
    summary,
)

TEMPLATES = Path(__file__).parents[1] / "templates"
DRAWN_LOG = ("kl_mean", "perplexity_ratio")  # spread over powers of ten


def render_report(results: dict, folder: Path, pictures: dict) -> Path:
    """Write folder/index.html from a run's results and the counts for its histograms."""
    candidates = results["candidates"]
    headline = _headline(candidates)
    deciding = (results.get("criteria") or [None])[0]
    rows = [
        _row(candidate, headline, deciding, results.get("release") or [])
        for candidate in candidates
    ]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            results=results,
            manifest=results.get("manifest") or {},
            rows=rows,
            deciding=deciding,
            on_grid=_on_grid(results.get("model") or {}),
            headline=describe(headline),
            summary=summary(rows),
            figures=_figures(rows, headline, pictures or {}),
            parameters=list(
                dict.fromkeys(key for c in candidates for key in c.get("parameters") or {})
            ),
            service=laid_out(results.get("resources")),
            symbols=SYMBOLS,
            measured=sorted({m["name"] for c in candidates for m in c.get("metrics") or []}),
        )
    )
    return write_page(Path(folder) / "index.html", page)


def render_index(reports: Path) -> Path:
    """Write reports/index.html: every run below `reports`, readable or not, and the leaderboard of their candidates."""
    found = leaderboard.runs(Path(reports))
    rows = leaderboard.newest(leaderboard.candidates(found))
    models = [
        _best(model, headline, group, place)
        for place, ((model, headline), group) in enumerate(leaderboard.by_model(rows).items())
    ]
    changes = [
        _change(name, line, found, place)
        for place, (name, line) in enumerate(leaderboard.trends(found).items())
    ]
    script = (TEMPLATES / "board.js").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template("index.html.j2")
        .render(
            runs=found,
            rows=rows,
            models=models,
            changes=changes,
            script=Markup(script),
            digest=b64encode(sha256(script.encode()).digest()).decode(),
        )
    )
    return write_page(Path(reports) / "index.html", page)


def _best(model, headline, rows, place):
    """A model's chart of all candidates, and those that no other beats."""
    ahead, about = leaderboard.frontier(rows), describe(headline)
    points = [
        {
            "name": row["name"] if row in ahead else "",
            "mb": row["bytes"] / 1e6,
            "verdict": row["verdict"],
            "asked": None,
            **{key: row["fidelity"].get(key) for key in ("value", "low", "high")},
        }
        for row in rows
        if row["bytes"] and leaderboard.bound(row) is not None
    ]
    log = headline in DRAWN_LOG and all(point["value"] > 0 for point in points)
    chart = (
        svg.fidelity_against_size(points, about["label"], log, f"frontier-{place}")
        if points
        else ""
    )
    return {
        "model": model,
        "about": about,
        "frontier": [{**row, "bound": leaderboard.bound(row)} for row in ahead],
        "chart": Markup(chart),
    }


def _change(name, line, found, place):
    """An experiment from run to run, and its two newest runs beside each other."""
    newest, before = [run for run in found if run["experiment"] == name and not run["problem"]][:2]
    label = describe(
        next((run["worst"]["headline"] for run in reversed(line) if run["worst"]), None)
    )["label"]
    return {
        "name": name,
        "line": line,
        "chart": Markup(svg.trend(line, name, label, f"trend-{place}")),
        "newest": newest,
        "before": before,
        "pairs": leaderboard.side_by_side(before, newest),
    }


def _headline(candidates):
    names = [m["name"] for c in candidates for m in c.get("metrics") or []]
    return next(
        (name for name in leaderboard.HEADLINES if name in names), names[0] if names else None
    )


def _on_grid(model):
    """Layers of the baseline that lie on a grid already, by the grid."""
    found = {}
    for name, grid in (model.get("on_grid") or {}).items():
        found.setdefault(f"{grid['bits']} bits in groups of {grid['group_size']}", []).append(name)
    return found


def _row(candidate, headline, deciding, release):
    measured = {m["name"]: m for m in candidate.get("metrics") or []}
    every = [*(candidate.get("gates") or []), *(candidate.get("claims") or [])]
    gates = [explained(gate, candidate) for gate in every]
    own = [gate for gate in gates if gate["criteria"] == deciding]
    judged = {gate["metric"] for gate in every}
    return {
        "candidate": candidate,
        "name": candidate["name"],
        "baseline": candidate["name"] == "baseline",
        "gates": own,
        "claims": [gate for gate in gates if gate["criteria"] != deciding],
        "others": [m for name, m in measured.items() if name not in judged],
        "reread": sum(bool(layer.get("reread")) for layer in candidate.get("layers") or []),
        "headline": measured.get(headline),
        "speedup": measured.get("speedup"),
        "release": candidate["name"] in release,
        "steps": [step_in_words(step) for step in candidate.get("steps") or []],
        "asked": next((g["threshold"] for g in own if g["metric"] == headline), None),
        **answer(candidate, own),
    }


def _figures(rows, headline, pictures):
    points = [
        {
            "name": row["name"],
            "mb": row["candidate"]["bytes_on_disk"] / 1e6,
            "asked": row["asked"],
            "verdict": None
            if row["answer"] in ("reference", "not judged")
            else row["candidate"]["verdict"],
            **{key: row["headline"].get(key) for key in ("value", "low", "high")},
        }
        for row in rows
        if _drawable(row)
    ]
    layers = {
        row["name"]: row["candidate"]["layers"] for row in rows if row["candidate"].get("layers")
    }
    spread = pictures.get("similarities") or {}
    restored = pictures.get("restored") or {}
    label = describe(headline)["label"]
    log = headline in DRAWN_LOG and all(p["value"] > 0 for p in points)
    return {
        "points": points,
        "layers": layers,
        "spread": spread,
        "restored": restored,
        "by_restored": Markup(svg.divergence_by_layer(restored)) if restored else "",
        "fidelity": Markup(svg.fidelity_against_size(points, label, log)) if points else "",
        "by_layer": Markup(svg.by_layer(layers, "error")) if layers else "",
        "by_sparsity": Markup(svg.by_layer(layers, "sparsity")) if layers else "",
        "similarities": Markup(svg.similarity_distributions(spread)) if spread else "",
    }


def _drawable(row):
    value = (row["headline"] or {}).get("value")
    return (
        bool(row["candidate"].get("bytes_on_disk")) and value is not None and math.isfinite(value)
    )


def _environment():
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number,
        interval=interval,
        describe=describe,
        moment=moment,
        link=lambda path: quote(str(path)),
    )
    environment.globals.update(
        zip=zip, tones=TONES, css=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    )
    return environment
