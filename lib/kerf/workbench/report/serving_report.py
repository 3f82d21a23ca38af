"""The serving benchmark of a run for its report: figures by model and measure, and the columns of a table."""

from kerf.profiling.serving_benchmark import AGAIN, BASELINE, SPEED

MEMORY, FIRST_ANSWER = "resident memory", "until the first answer"
COLUMNS = {  # of the report's table, by measure: the heading, and a factor of the values
    FIRST_ANSWER: ("First answer, s", 1),
    "load, cold": ("Load, s", 1),
    MEMORY: ("Memory, MB", 1e-6),
    "latency, 1 x 16 tokens": ("1 × 16 tokens, ms", 1e3),
    SPEED: ("32 × 64 tokens, texts/s", 1),
    f"{SPEED}, one thread": ("One thread, texts/s", 1),
}
COSTS = {MEMORY: "memory", FIRST_ANSWER: "time to the first answer"}


def serving_report(resources: dict | None) -> dict | None:
    """`resources` of results.json with model names, rows by measure and model, and the columns of the report's table.

    None if the run has no serving benchmark; unchanged if that failed.
    """
    if not resources or resources.get("error"):
        return resources
    rows = [row for row in resources["rows"] if row["measure"] != "failed"]
    names = dict.fromkeys(row["model"] for row in rows if row["model"] != AGAIN)
    measures: dict[str, dict[str, dict]] = {}
    for row in rows:
        measures.setdefault(row["measure"], {})[row["model"]] = row
    columns = [(*COLUMNS[name], measures[name]) for name in COLUMNS if name in measures]
    return {
        **resources,
        "names": list(names),
        "repeated_baseline": AGAIN,
        "baseline": BASELINE,
        "measures": measures,
        "columns": columns,
        "failed": [row for row in resources["rows"] if row["measure"] == "failed"],
        "speed": measures.get(SPEED, {}),
        "costs": [(measures.get(name, {}), label) for name, label in COSTS.items()],
    }
