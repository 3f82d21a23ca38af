"""What a run found that somebody who releases a candidate should know: issues, and what was not tested.

Every line is computed from results.json and stands in Markdown. Not here: the page that holds them
(`kerf.workbench.report.release`).
"""

from html import escape

from kerf.evaluate.metrics import METRICS
from kerf.workbench.report.text_format import broke, explained, interval, number, reason

ENGLISH = ("news", "wiki")  # texts whose language is known
TOO_MANY = 3  # names in a line
WORD = {"FAIL": "failed", "INCONCLUSIVE": "not decided"}


def plain(text: object) -> str:
    """Text that Markdown and a hub show as it stands, on one line."""
    line = escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{letter}" if letter in "|`*[]\\" else letter for letter in line)


def issues(candidate: dict) -> list[str]:
    """What is wrong or doubtful with one candidate, the worst first."""
    if candidate["status"] != "ok":
        return [plain(f"It was not measured: {broke(candidate)}")]
    return [
        *_gates(candidate),
        *_noise(candidate),
        *_layers(candidate),
        *_resources(candidate),
        *_ungated(candidate),
    ]


def _gates(candidate: dict) -> list[str]:
    lines = [
        f"Gate {WORD[gate['verdict']]}: {plain(reason(explained(gate, candidate)))}."
        for verdict in WORD
        for gate in candidate["gates"]
        if gate["verdict"] == verdict
    ]
    if not candidate["gates"]:
        lines.append("No gate applies to it, so nothing decides whether it may be used.")
    said = {"FAIL": "does not hold", "INCONCLUSIVE": "not decided"}
    return lines + [
        f"Claim {said[gate['verdict']]}: {plain(reason(explained(gate, candidate)))} ({plain(gate['source'] or gate['criteria'])})."
        for gate in candidate["claims"]
        if gate["verdict"] in said
    ]


def noisy(candidate: dict) -> list[dict]:
    """Gates that passed by less than the baseline differs from itself between two measurements."""
    rows = {row["name"]: row for row in candidate["metrics"]}
    return [
        gate
        for gate in candidate["gates"]
        if gate["verdict"] == "PASS"
        and gate["metric"] in rows
        and 0 <= abs(gate["bound"] - gate["threshold"]) < _width(rows[gate["metric"]])
    ]


def _width(row: dict) -> float:
    """How far apart two measurements of the baseline lay; 0 where it was measured once."""
    noise = row.get("noise") or {}
    return (
        0.0
        if noise.get("low") is None or noise.get("high") is None
        else noise["high"] - noise["low"]
    )


def _noise(candidate: dict) -> list[str]:
    lines = [
        f"{plain(METRICS[gate['metric']].label)} passed by less than the baseline differs from itself when it is measured again."
        for gate in noisy(candidate)
    ]
    drowned = [
        METRICS[row["name"]].label
        for row in candidate["metrics"]
        if None not in (row["baseline"], row["value"])
        and 0 < abs(row["value"] - row["baseline"]) <= _width(row)
    ]
    if drowned:
        lines.append(f"Within measurement noise: {plain('; '.join(drowned))}.")
    lines += [
        f"{plain(METRICS[row['name']].label)} has {'no value' if row['value'] is None else 'no interval'}: {plain(row['why'])}."
        for row in candidate["metrics"]
        if row.get("why")
    ]
    return lines


def _layers(candidate: dict) -> list[str]:
    layers = candidate.get("layers") or []
    reread = sum(bool(layer.get("reread")) for layer in layers)
    lines = []
    if reread:
        lines.append(
            f"{reread} of {len(layers)} layers were on the grid that they were cut to before: cutting them proves nothing."
        )
    notes = {}
    for layer in layers:
        if layer.get("note"):
            notes.setdefault(layer["note"], []).append(layer["name"])
    lines += [
        f"{plain(note)}: {plain(_some(names))}." for note, names in list(notes.items())[:TOO_MANY]
    ]
    rest = sum(len(names) for names in list(notes.values())[TOO_MANY:])
    return lines + (
        [f"{rest} more layers have notes of their own, in results.json."] if rest else []
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:TOO_MANY])
    return shown if len(names) <= TOO_MANY else f"{shown} and {len(names) - TOO_MANY} more"


def _resources(candidate: dict) -> list[str]:
    rows = {row["name"]: row for row in candidate["metrics"]}
    lines = []
    if candidate["kernel"] == "dequantized" and "speedup" not in rows:
        lines.append("Weights are stored small but computed in float: it may claim no speed.")
    for name, more in (
        ("rss_peak_bytes", "takes more memory"),
        ("load_seconds", "takes longer to load"),
    ):
        row = rows.get(name)
        if (
            row
            and row["baseline"] is not None
            and (row["low"] if row["low"] is not None else row["value"])
            > row["baseline"] + _width(row)
        ):
            unit = METRICS[name].unit
            lines.append(
                f"It {more} than the baseline: {number(row['value'], unit)} against {number(row['baseline'], unit)}."
            )
    if "speedup" in rows and rows["speedup"]["low"] is not None and rows["speedup"]["low"] <= 1:
        lines.append(
            f"That it is faster is not shown: {number(rows['speedup']['value'])} times ({interval(rows['speedup'])})."
        )
    return lines


def _ungated(candidate: dict) -> list[str]:
    judged = {gate["metric"] for gate in [*candidate["gates"], *candidate["claims"]]}
    free = [METRICS[row["name"]].label for row in candidate["metrics"] if row["name"] not in judged]
    return [f"Measured, but no gate asks for it: {plain('; '.join(free))}."] if free else []


def of_the_run(results: dict) -> list[str]:
    """Issues that all candidates share."""
    setting = {path: entry["value"] for path, entry in (results.get("settings") or {}).items()}
    grids = {}
    for name, grid in (results["model"].get("on_grid") or {}).items():
        grids.setdefault(f"{grid['bits']} bits in groups of {grid['group_size']}", []).append(name)
    lines = [
        f"The baseline's own weights lie on a low-bit grid: {len(names)} layer{'s' * (len(names) > 1)} at {grid} ({plain(_some(names))}). "
        "What lands on the same grid seems to lose nothing."
        for grid, names in grids.items()
    ]
    baseline = results["candidates"][0]
    if baseline["status"] != "ok":
        lines += [f"The baseline: {line}" for line in issues(baseline)]
    if setting.get("calibration.texts") and setting.get("calibration.texts") == setting.get(
        "evaluation.texts"
    ):
        lines.append(
            f"Calibrated and measured on other documents of one source, {plain(setting['calibration.texts'])}: "
            "text of another kind may lose more."
        )
    reused = [candidate["name"] for candidate in results["candidates"] if candidate.get("reused")]
    return lines + (
        [f"Taken from an earlier run with the same inputs: {plain(', '.join(reused))}."]
        if reused
        else []
    )


def untested(results: dict, candidates: list[dict]) -> list[str]:
    """What nothing in the run says anything about. candidates: those meant for release."""
    manifest, cpu = results["manifest"], results["manifest"].get("cpu") or {}
    setting = {path: entry["value"] for path, entry in (results.get("settings") or {}).items()}
    measured = {row["name"] for candidate in candidates for row in candidate["metrics"]}
    sources = _sources(str(setting.get("evaluation.texts")), measured)
    foreign = [name for name in (setting.get("evaluation.texts"),) if name not in ENGLISH]
    lines = [
        f"Other hardware than {plain(processor(cpu))}; no GPU.",
        f"Other text than {plain('; '.join(sources))}.",
        f"Other languages than {plain('that of ' + str(foreign[0]) if foreign else 'English')}.",
        f"Another draw of calibration text than {setting.get('calibration.samples')} samples with seed {manifest.get('seed')}.",
    ]
    if "perplexity" in measured:
        lines.append(
            f"Contexts longer than {setting.get('evaluation.seq_len', setting.get('evaluation.context'))} tokens."
        )
    slow = [
        candidate["name"]
        for candidate in candidates
        if candidate["status"] == "ok"
        and "speedup" not in {row["name"] for row in candidate["metrics"]}
    ]
    if slow:
        lines.append(f"Whether it is faster: {plain(', '.join(slow))}.")
    return lines


def processor(cpu: dict) -> str:
    """Processor and threads of a manifest."""
    threads = cpu.get("threads", "an unknown number of")
    return f"{cpu.get('model') or 'an unknown processor'} with {threads} {'thread' if threads == 1 else 'threads'}"


def _sources(own: str, measured: set[str]) -> list[str]:
    """Texts that the metrics were measured on, in a reader's words."""
    extra = {
        "cosine_mean_wiki": "wiki",
        "human_spearman": "the human-rated pairs of Lee, WordSim and SimLex",
    }
    return list(dict.fromkeys([own, *(text for name, text in extra.items() if name in measured)]))
