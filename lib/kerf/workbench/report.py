"""Render a run as one self-contained page, and all runs as one list.

Everything on the page is in results.json. Not here: measuring, judging, drawing.
"""

import json
import math
import os
from datetime import datetime, timezone
from pathlib import Path
from textwrap import shorten
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from kerf.metrics import METRICS
from kerf.workbench import charts

SCHEMA = 1  # the newest results.json that these pages understand
HEADLINES = ["cosine_mean", "perplexity_ratio", "kl_mean", "exact_match"]  # the first that was measured
OPS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than", "==": "exactly"}
TONES = {"PASS": ("yes", "pass"), "FAIL": ("no", "fail"), "INCONCLUSIVE": ("not decided", "open")}
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
        headline=describe(headline), summary=_summary(rows), figures=_figures(rows, headline, pictures or {}),
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


def number(value, unit: str = "", like=None) -> str:
    """A figure for people: as many places as its size deserves, or as `like` has."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{_places(value if like is None else like)}f}"
    return f"{text.replace('-', '−')} {unit}".strip()


def interval(entry: dict | None, unit: str = "", like=None) -> str:
    """`low to high` with the places of the value it belongs to."""
    if not entry or entry.get("low") is None or entry.get("high") is None:
        return "–"
    return f"{number(entry['low'], unit, like)} to {number(entry['high'], unit, like)}"


def asked(gate: dict) -> str:
    """A gate's threshold in words."""
    threshold, unit = gate["threshold"], describe(gate["metric"])["unit"]
    if unit == "bytes":
        return f"{OPS.get(gate['op'], gate['op'])} {number(threshold, unit)}"
    text = f"{threshold:.6g}".replace("-", "−")
    text = text + "0" if len(text.partition(".")[2]) == 1 else text
    return f"{OPS.get(gate['op'], gate['op'])} {text} {unit}".strip()


def moment(text: str) -> str:
    """An ISO time as people write it; anything else as it stands."""
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return f"{when:%Y-%m-%d %H:%M}" + (" UTC" if when.tzinfo == timezone.utc else "")


def describe(name: str | None) -> dict:
    """Label, explanation, unit and direction of a metric; the bare name if it is unknown."""
    metric = METRICS.get(name)
    label = metric.label[:1].upper() + metric.label[1:] if metric else name
    return {"name": name, "label": label, "doc": getattr(metric, "doc", ""),
            "unit": getattr(metric, "unit", "") or "", "better": getattr(metric, "better", "higher")}


def _places(value):
    size = abs(value)
    if 0.995 <= size < 1:
        return 5 if size > 0.9995 else 4  # the interesting digits come after the nines
    if 0 < size < 0.1:
        return min(8, 1 - math.floor(math.log10(size)) + (size < 0.01))
    return 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0


def _headline(candidates):
    names = [m["name"] for c in candidates for m in c.get("metrics") or []]
    return next((name for name in HEADLINES if name in names), names[0] if names else None)


def _row(candidate, headline, deciding, release):
    measured = {m["name"]: m for m in candidate.get("metrics") or []}
    every = [*(candidate.get("gates") or []), *(candidate.get("claims") or [])]
    gates = [_gate(gate, measured, candidate) for gate in every]
    own = [gate for gate in gates if gate["criteria"] == deciding]
    judged = {gate["metric"] for gate in every}
    return {"candidate": candidate, "name": candidate["name"], "baseline": candidate["name"] == "baseline",
            "gates": own, "claims": [gate for gate in gates if gate["criteria"] != deciding],
            "others": [m for name, m in measured.items() if name not in judged],
            "headline": measured.get(headline), "release": candidate["name"] in release,
            "steps": [_step(step) for step in candidate.get("steps") or []],
            "asked": next((g["threshold"] for g in own if g["metric"] == headline), None),
            **_answer(candidate, own)}


def _gate(gate, measured, candidate):
    metric = measured.get(gate["metric"])
    if metric is None and isinstance(candidate.get(gate["metric"]), (int, float)):  # a size or a time of its own
        metric = dict.fromkeys(("low", "high", "noise", "n"), None) | {"value": candidate[gate["metric"]]}
    return {**gate, "about": describe(gate["metric"]), "asked": asked(gate), "measured": metric}


def _answer(candidate, gates):
    """May it be used? The word, a tone for its mark, and why."""
    status, verdict = candidate.get("status"), candidate.get("verdict")
    if candidate["name"] == "baseline":
        return {"answer": "reference", "tone": "plain", "why": "the model as it is"}
    if status == "failed":
        error = candidate.get("error") or {}
        why = shorten(str(error.get("message") or "no message"), 300, placeholder=" …")
        where = f"{error.get('notebook') or 'a notebook'} failed in cell {error.get('cell', '?')}"
        return {"answer": "no", "tone": "fail", "why": f"{where}: {why}"}
    if status == "skipped" or not gates or verdict not in TONES:
        why = "it was not measured" if status == "skipped" else "no threshold applies to it"
        return {"answer": "not judged", "tone": "plain", "why": why}
    if verdict == "PASS":
        why = "its one threshold was met" if len(gates) == 1 else f"all {len(gates)} thresholds were met"
    else:
        decisive = [gate for gate in gates if gate["verdict"] == verdict]
        more = f"; and {len(decisive) - 1} more" if len(decisive) > 1 else ""
        why = "; ".join(_reason(gate) for gate in decisive[:1]) + more
    word, tone = TONES[verdict]
    return {"answer": word, "tone": tone, "why": why}


def _reason(gate):
    label = gate["about"]["label"] or ""
    label = label[:1].lower() + label[1:] if label[1:2].islower() else label  # "nDCG" stays
    metric, unit = gate["measured"], gate["about"]["unit"]
    if metric is None or metric.get("value") is None:
        return f"{label} {gate['asked']} was asked, and it was not measured"
    span = interval(metric, like=metric["value"])
    text = f"{label} {gate['asked']} was asked, measured {number(metric['value'], unit)}"
    text += f" ({span})" if span != "–" and unit != "bytes" else ""
    if gate["verdict"] == "INCONCLUSIVE":
        needed = gate.get("needed_n")
        text += f"; about {needed:,.0f} items would decide" if needed else "; more items would be needed to decide"
    return text


def _step(step):
    (kind, keys), = step.items()
    words = [str(value) if key == "method" else f"{key} {value}" for key, value in (keys or {}).items()]
    return f"{kind} {', '.join(words)}".strip()


def _summary(rows):
    """What a manager needs to know, as one or two sentences."""
    meant = [row for row in rows if row["release"]] or [row for row in rows if not row["baseline"]]
    said = {"yes": "may be used", "no": "may not", "not decided": "cannot be decided yet", "not judged": "not judged"}
    counts = {word: sum(row["answer"] == word for row in meant) for word in said}
    parts = [f"{counts[word]} {text}" for word, text in said.items() if counts[word]]
    if len(meant) == 1:
        answer = meant[0]["answer"]
        verb = {"no": "may not be used", "not judged": "was not judged"}.get(answer, said[answer])
        text = f"{meant[0]['name']}, the one candidate meant for release, {verb}."
    elif meant:
        counted = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        text = f"Of the {len(meant)} candidates meant for release, {counted}."
    else:
        text = "There is no candidate beside the baseline."
    usable = [row["candidate"] for row in meant if row["answer"] == "yes" and row["candidate"].get("bytes_on_disk")]
    if usable:
        best = min(usable, key=lambda candidate: candidate["bytes_on_disk"])
        text += f" The smallest that may be used is {best['name']}: {number(best['bytes_on_disk'], 'bytes')}"
        ratio = best.get("compression_ratio")
        text += f", {ratio:.1f} times smaller than the original." if ratio else "."
    return text


def _figures(rows, headline, pictures):
    points = [{"name": row["name"], "mb": row["candidate"]["bytes_on_disk"] / 1e6, "asked": row["asked"],
               "verdict": None if row["answer"] in ("reference", "not judged") else row["candidate"]["verdict"],
               **{key: row["headline"].get(key) for key in ("value", "low", "high")}}
              for row in rows if _drawable(row)]
    layers = {row["name"]: row["candidate"]["layers"] for row in rows if row["candidate"].get("layers")}
    spread = pictures.get("similarities") or {}
    label = describe(headline)["label"]
    log = headline in DRAWN_LOG and all(p["value"] > 0 for p in points)
    return {"points": points, "layers": layers, "spread": spread,
            "fidelity": Markup(charts.fidelity_against_size(points, label, log)) if points else "",
            "by_layer": Markup(charts.error_by_layer(layers)) if layers else "",
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
        run["started"] = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat()
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
