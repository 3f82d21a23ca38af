"""What candidates take as a service, for the report: the figures by measure and model, and which candidate to take, in words."""

from kerf.resources import AGAIN, BASELINE, SPEED
from kerf.workbench.words import number

SHOWN = ("until the first answer", "load, cold", "resident memory", "latency, 1 x 16 tokens", "latency 99 %, 1 x 16 tokens", SPEED, f"{SPEED}, one thread")


def laid_out(found: dict | None) -> dict | None:
    """names (columns), measures (name, short, and rows by model), failed (rows), and what to take; None where nothing was measured."""
    if not found or found.get("error"):
        return found and {"error": found["error"], "sentence": ""}
    rows = [row for row in found["rows"] if row["measure"] != "failed"]
    names = [name for name in dict.fromkeys(row["model"] for row in rows) if name != AGAIN]
    by_measure = {}
    for row in rows:
        by_measure.setdefault(row["measure"], {})[row["model"]] = row
    measures = [{"name": name, "short": name in SHOWN, "rows": cells, "noise": cells.get(AGAIN)} for name, cells in by_measure.items()]
    return {**found, "names": names, "measures": measures, "failed": [row for row in found["rows"] if row["measure"] == "failed"],
            "sentence": sentence(found, {name: cells.get(found["recommended"]) for name, cells in by_measure.items()})}  # fmt: skip


def sentence(found: dict, best: dict) -> str:
    """Which candidate to take. best: rows of the recommended one by measure."""
    limit = f" in {found['memory_limit']:g} MB" if found["memory_limit"] else ""
    if not found["recommended"]:
        return f"As a service on this machine{limit}, no candidate that met its thresholds answers sooner than the {BASELINE} beyond noise."
    told = [f"{number(best[SPEED]['ratio'])} times as many texts a second as the {BASELINE}"]
    told += [f"{number(best[name]['ratio'])} times its {label}" for name, label in (("resident memory", "memory"), ("until the first answer", "time to the first answer")) if best.get(name)]
    return f"As a service on this machine{limit}, take {found['recommended']}: {', '.join(told)}."
