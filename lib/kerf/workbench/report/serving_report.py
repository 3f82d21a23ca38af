"""What candidates take as a service, for the report: the figures by model and measure, and which candidate to take, in words."""

from kerf.profiling.serving_benchmark import AGAIN, BASELINE, SPEED
from kerf.workbench.report.text_format import number

# Measure: what stands over its column, and what its value is multiplied by.
SHOWN = {
    "until the first answer": ("First answer, s", 1),
    "load, cold": ("Load, s", 1),
    "resident memory": ("Memory, MB", 1e-6),
    "latency, 1 x 16 tokens": ("1 × 16 tokens, ms", 1e3),
    SPEED: ("32 × 64 tokens, texts/s", 1),
    f"{SPEED}, one thread": ("One thread, texts/s", 1),
}
FEW = 5  # noisy figures that are named


def laid_out(found: dict | None) -> dict | None:
    """names of models, measures (name and rows by model), shown (those that have a column), failed (rows), noise and what to take
    in words; None where nothing was measured, and only `error` where that failed."""
    if not found or found.get("error"):
        return found and {"error": found["error"], "sentence": ""}
    rows = [row for row in found["rows"] if row["measure"] != "failed"]
    measures = {}
    for row in rows:
        measures.setdefault(row["measure"], {})[row["model"]] = row
    shown = [
        (label, scale, measures[name]) for name, (label, scale) in SHOWN.items() if name in measures
    ]
    return {
        **found,
        "names": [name for name in dict.fromkeys(row["model"] for row in rows) if name != AGAIN],
        "again": AGAIN,
        "baseline": BASELINE,
        "measures": measures,
        "shown": shown,
        "failed": [row for row in found["rows"] if row["measure"] == "failed"],
        "noise": noise(found["noisy"], len(measures)),
        "sentence": sentence(found, measures),
    }


def noise(noisy: list[str], count: int) -> str:
    """Whether the machine was quiet enough, of `count` figures."""
    if not noisy:
        return ""
    named = (
        f": {'; '.join(noisy)}"
        if len(noisy) <= FEW
        else "; the last row and column say by how much"
    )
    return f"repeated baseline measurements differed by more than 10 % on {len(noisy)} of {count} figures{named}."


def sentence(found: dict, measures: dict) -> str:
    """Which candidate to take. measures: rows of models by measure."""
    limit = f" in {found['memory_limit']:g} MB" if found["memory_limit"] else ""
    best = {name: rows.get(found["recommended"]) for name, rows in measures.items()}
    if not found["recommended"]:
        return f"As a service on this machine{limit}, no candidate that met its thresholds answers sooner than the {BASELINE} beyond noise."
    told = [f"{best[SPEED]['ratio']:.1f} times as many texts a second as the {BASELINE}"]
    for name, label in (
        ("resident memory", "memory"),
        ("until the first answer", "time to the first answer"),
    ):
        told += (
            [f"{number(best[name]['ratio'], like=10)} times its {label}"] if best.get(name) else []
        )
    return f"As a service on this machine{limit}, take {found['recommended']}: {', '.join(told)}."
