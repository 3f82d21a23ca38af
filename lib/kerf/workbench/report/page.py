"""Render a run as one self-contained page, and all runs as one list; every figure on them is in results.json."""

from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from markupsafe import Markup

from kerf.charts import svg
from kerf.core.atomic import write_page
from kerf.evaluate.metrics import SYMBOLS
from kerf.profiling.serving_benchmark import AGAIN, BASELINE, SPEED
from kerf.workbench.report import answers, domains, leaderboard, text_format
from kerf.workbench.report.rendering import TEMPLATES, render

JUDGED = [word for word, _ in answers.TONES.values()]  # answers that rest on gates
LOG_SCALE = ("kl_mean", "perplexity_ratio")  # metrics that range over powers of ten
MEMORY, FIRST_ANSWER = "resident memory", "until the first answer"
COSTS = {MEMORY: "memory", FIRST_ANSWER: "time to the first answer"}
COLUMNS = {  # of the serving benchmark's table, by measure: the heading, and a factor of the values
    FIRST_ANSWER: ("First answer, s", 1),
    "load, cold": ("Load, s", 1),
    MEMORY: ("Memory, MB", 1e-6),
    "latency, 1 x 16 tokens": ("1 × 16 tokens, ms", 1e3),
    SPEED: ("32 × 64 tokens, texts/s", 1),
    f"{SPEED}, one thread": ("One thread, texts/s", 1),
}


def render_report(results: dict, folder: Path, pictures: dict) -> Path:
    """Write folder/index.html from a run's results and `pictures`, the counts of its histograms."""
    candidates, release = results["candidates"], results.get("release") or []
    measured = [name for candidate in candidates for name in text_format.metrics_of(candidate)]
    headlines = [name for name in leaderboard.HEADLINES if name in measured]
    headline = next(iter(headlines + measured), None)
    criteria = (results.get("criteria") or [None])[0]
    uses = results.get("uses") or {}
    rows = [_row(candidate, headline, criteria, release, list(uses)) for candidate in candidates]
    page = render(
        "report.html.j2",
        results=results,
        manifest=results.get("manifest") or {},
        rows=rows,
        criteria=criteria,
        uses=uses,
        use=results.get("use") or [],
        on_grid=text_format.layers_by_grid(results.get("model") or {}),
        headline=text_format.describe(headline),
        sources=domains.sources(results),
        same_domain=domains.same_domain(results),
        slices=domains.slices(candidates),
        summary=answers.summary(rows, results.get("use") or []),
        figures=_figures(rows, headline, pictures or {}),
        parameters=dict.fromkeys(key for row in candidates for key in row.get("parameters") or {}),
        service=_service(results.get("resources")),
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
    frontier, about = leaderboard.frontier(rows), text_format.describe(headline)
    points = [row if row in frontier else {**row, "name": ""} for row in leaderboard.measured(rows)]
    chart = _fidelity_chart(points, headline, f"frontier-{place}")
    frontier = [{**row, "bound": leaderboard.bound(row)} for row in frontier]
    return {"model": model, "about": about, "frontier": frontier, "chart": chart}


def _trend(name: str, line: list[dict], runs: list[dict], place: int) -> dict:
    """An experiment from run to run, and its two newest runs beside each other."""
    readable = [run for run in runs if run["experiment"] == name and not run["problem"]]
    newest, before = readable[:2]
    headlines = [run["worst"]["headline"] for run in reversed(line) if run["worst"]]
    label = text_format.describe(next(iter(headlines), None)).label
    chart = Markup(svg.trend(line, name, label, f"trend-{place}"))
    pairs = leaderboard.side_by_side(before, newest)
    trend = {"name": name, "line": line, "chart": chart, "pairs": pairs}
    return trend | {"newest": newest, "before": before}


def _row(
    candidate: dict, headline: str | None, criteria: str | None, release: list[str], uses: list[str]
) -> dict:
    metrics = text_format.metrics_of(candidate)
    judged = [*(candidate.get("gates") or []), *(candidate.get("claims") or [])]
    gates = [answers.explained(gate, candidate) for gate in judged]
    own = [gate for gate in gates if gate["criteria"] == criteria]
    deciding = answers.deciding({"gates": own})
    thresholds = [gate["threshold"] for gate in deciding if gate["metric"] == headline]
    shown = [gate["measured"] for gate in gates]
    verdict = answers.answer(candidate, deciding)
    name, size = candidate["name"], candidate.get("bytes_on_disk")
    layers = candidate.get("layers") or []
    row = {"candidate": candidate, "name": name, "bytes": size, "baseline": name == "baseline"}
    row |= {"release": name in release, "threshold": next(iter(thresholds), None)}
    row |= {"fidelity": metrics.get(headline or ""), "speedup": metrics.get("speedup")}
    judgement = candidate["verdict"] if verdict["answer"] in JUDGED else None
    row |= {**verdict, "verdict": judgement}
    by_use = {key: [gate for gate in own if gate.get("use") in (None, key)] for key in uses}
    row["uses"] = {key: answers.answer(candidate, of, key) for key, of in by_use.items()}
    return row | {
        "gates": deciding,
        "other_gates": [gate for gate in own if gate not in deciding],
        "claims": [gate for gate in gates if gate["criteria"] != criteria],
        "others": [metric for metric in candidate.get("metrics") or [] if metric not in shown],
        "already_on_grid": sum(bool(layer.get("reread")) for layer in layers),
        "steps": [text_format.step_in_words(step) for step in candidate.get("steps") or []],
    }


def _figures(rows: list[dict], headline: str | None, pictures: dict) -> dict:
    """The charts of a report with the numbers that they show."""
    sized = [row for row in rows if row["bytes"] and row["fidelity"]]
    points = [row for row in sized if text_format.is_finite(row["fidelity"].get("value"))]
    layers = {row["name"]: row["candidate"].get("layers") for row in rows}
    layers = {name: of_candidate for name, of_candidate in layers.items() if of_candidate}
    similarities, restored = pictures.get("similarities") or {}, pictures.get("restored") or {}
    data = {"points": points, "layers": layers, "restored": restored}
    return data | {
        "similarity_counts": similarities,
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


def _service(resources: dict | None) -> dict | None:
    """`resources` of results.json with rows by measure and model; unchanged if the run has no serving benchmark or it failed."""
    if not resources or resources.get("error"):
        return resources
    failed = [row for row in resources["rows"] if row["measure"] == "failed"]
    rows = [row for row in resources["rows"] if row not in failed]
    measures: dict[str, dict[str, dict]] = {}
    for row in rows:
        measures.setdefault(row["measure"], {})[row["model"]] = row
    names = dict.fromkeys(row["model"] for row in rows if row["model"] != AGAIN)
    columns = [(*COLUMNS[name], measures[name]) for name in COLUMNS if name in measures]
    costs = [(measures.get(name, {}), label) for name, label in COSTS.items()]
    service = {"baseline": BASELINE, "repeated_baseline": AGAIN, "names": names, "failed": failed}
    service |= {"measures": measures, "columns": columns, "costs": costs}
    return resources | service | {"speed": measures.get(SPEED, {})}
