"""Render a run as one self-contained page, and all runs as one list.

Everything on the page is in results.json. Not here: measuring, judging, drawing.
"""

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from kerf.workbench import charts
from kerf.workbench.words import answer, asked, describe, interval, moment, number, step_in_words, summary

SCHEMA = 1  # the newest results.json that these pages understand
HEADLINES = ["cosine_mean", "perplexity_ratio", "kl_mean", "exact_match"]  # the first that was measured
DRAWN_LOG = ("kl_mean", "perplexity_ratio")  # spread over powers of ten
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def render_report(results: dict, folder: Path, pictures: dict) -> Path:
    """Write folder/index.html from a run's results and the counts for its histograms."""
    candidates = results["candidates"]
    headline = _headline(candidates)
    deciding = (results.get("criteria") or [None])[0]
    rows = [_row(candidate, headline, deciding, results.get("release") or []) for candidate in candidates]
    page = _environment().get_template("report.html.j2").render(
        results=results, manifest=results.get("manifest") or {}, rows=rows, deciding=deciding,
        on_grid=_on_grid(results.get("model") or {}), headline=describe(headline), summary=summary(rows), figures=_figures(rows, headline, pictures or {}),
        parameters=list(dict.fromkeys(key for c in candidates for key in c.get("parameters") or {})),
        measured=sorted({m["name"] for c in candidates for m in c.get("metrics") or []}))
    return _write(Path(folder) / "index.html", page)


def render_index(reports: Path) -> Path:
    """Write reports/index.html: every run below `reports`, newest first, readable or not."""
    reports = Path(reports)
    runs = {}
    for path in [*reports.glob("*/results.json"), *reports.glob("history/*/*/results.json")]:
        run = _run(path, reports)
        runs.setdefault(run["key"], run)  # the newest of an experiment also stands in its history
    newest_first = sorted(runs.values(), key=lambda run: run["started"], reverse=True)
    page = _environment().get_template("index.html.j2").render(runs=newest_first)
    return _write(reports / "index.html", page)


def _headline(candidates):
    names = [m["name"] for c in candidates for m in c.get("metrics") or []]
    return next((name for name in HEADLINES if name in names), names[0] if names else None)


def _on_grid(model):
    """Layers of the baseline that lie on a grid already, by the grid."""
    found = {}
    for name, grid in (model.get("on_grid") or {}).items():
        found.setdefault(f"{grid['bits']} bits in groups of {grid['group_size']}", []).append(name)
    return found


def _row(candidate, headline, deciding, release):
    measured = {m["name"]: m for m in candidate.get("metrics") or []}
    every = [*(candidate.get("gates") or []), *(candidate.get("claims") or [])]
    gates = [_gate(gate, measured, candidate) for gate in every]
    own = [gate for gate in gates if gate["criteria"] == deciding]
    judged = {gate["metric"] for gate in every}
    return {"candidate": candidate, "name": candidate["name"], "baseline": candidate["name"] == "baseline",
            "gates": own, "claims": [gate for gate in gates if gate["criteria"] != deciding],
            "others": [m for name, m in measured.items() if name not in judged],
            "reread": sum(bool(layer.get("reread")) for layer in candidate.get("layers") or []),
            "headline": measured.get(headline), "speedup": measured.get("speedup"), "release": candidate["name"] in release,
            "steps": [step_in_words(step) for step in candidate.get("steps") or []],
            "asked": next((g["threshold"] for g in own if g["metric"] == headline), None),
            **answer(candidate, own)}


def _gate(gate, measured, candidate):
    metric = measured.get(gate["metric"])
    if metric is None and isinstance(candidate.get(gate["metric"]), (int, float)):  # a size or a time of its own
        metric = dict.fromkeys(("low", "high", "noise", "n"), None) | {"value": candidate[gate["metric"]]}
    return {**gate, "about": describe(gate["metric"]), "asked": asked(gate), "measured": metric}


def _figures(rows, headline, pictures):
    points = [{"name": row["name"], "mb": row["candidate"]["bytes_on_disk"] / 1e6, "asked": row["asked"],
               "verdict": None if row["answer"] in ("reference", "not judged") else row["candidate"]["verdict"],
               **{key: row["headline"].get(key) for key in ("value", "low", "high")}}
              for row in rows if _drawable(row)]
    layers = {row["name"]: row["candidate"]["layers"] for row in rows if row["candidate"].get("layers")}
    spread = pictures.get("similarities") or {}
    restored = pictures.get("restored") or {}
    label = describe(headline)["label"]
    log = headline in DRAWN_LOG and all(p["value"] > 0 for p in points)
    return {"points": points, "layers": layers, "spread": spread, "restored": restored,
            "by_restored": Markup(charts.divergence_by_layer(restored)) if restored else "",
            "fidelity": Markup(charts.fidelity_against_size(points, label, log)) if points else "",
            "by_layer": Markup(charts.by_layer(layers, "error")) if layers else "",
            "by_sparsity": Markup(charts.by_layer(layers, "sparsity")) if layers else "",
            "similarities": Markup(charts.similarity_distributions(spread)) if spread else ""}


def _drawable(row):
    value = (row["headline"] or {}).get("value")
    return bool(row["candidate"].get("bytes_on_disk")) and value is not None and math.isfinite(value)


def _run(path, reports):
    """One line of the index; a file that cannot be used is a line too."""
    folder = path.parent
    inside = folder.relative_to(reports)
    page = folder / "index.html"
    run = {"key": str(inside), "experiment": str(inside).removeprefix("history/"), "started": "", "problem": None,
           "link": quote(str((page if page.is_file() else path).relative_to(reports))), "page": page.is_file()}
    try:
        run["started"] = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["schema"] > SCHEMA:
            return {**run, "problem": f"written by a newer Kerf (schema {results['schema']}, known: {SCHEMA})"}
        names = [c["name"] for c in results["candidates"] if c.get("verdict") == "PASS" and c["name"] != "baseline"]
        manifest = results["manifest"]
        return {**run, "key": f"{results['experiment']} {manifest.get('run') or manifest['started']}",
                "experiment": str(results["experiment"]), "started": str(manifest["started"]),
                "verdict": str(results["verdict"]), "model": results["model"]["id"], "usable": names,
                "count": len(results["candidates"]) - 1, "seconds": float(manifest["seconds"])}
    except UNREADABLE as error:
        kind = ("cannot be opened" if isinstance(error, OSError) else "is not valid JSON"
                if isinstance(error, (ValueError, RecursionError)) else "lacks a part that it should have")
        return {**run, "problem": f"not readable: results.json {kind}"}


def _environment():
    templates = Path(__file__).parent / "templates"
    environment = Environment(loader=FileSystemLoader(templates), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True)
    environment.filters.update(number=number, interval=interval, describe=describe, moment=moment,
                               link=lambda path: quote(str(path)))
    environment.globals.update(zip=zip, css=Markup((templates / "style.css").read_text(encoding="utf-8")))
    return environment


def _write(path, text):
    # a reader, or another run, must never find half a page
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".html.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    return part.replace(path)
