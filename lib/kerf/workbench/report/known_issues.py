"""Known issues of a run and its candidates, and what was not tested: Markdown lines, computed from results.json."""

from collections.abc import Iterator

from kerf.evaluate.metrics import METRICS
from kerf.workbench.report import answers, text_format
from kerf.workbench.report.answers import deciding
from kerf.workbench.report.text_format import (
    describe,
    label_of,
    metrics_of,
    number,
    plain,
    settings_of,
)

ENGLISH = ("news", "wiki", "questions", "docs", "bbc")  # texts whose language is known
MANY = 3  # names in a line
GATE = {"FAIL": "failed", "INCONCLUSIVE": "not decided"}
CLAIM = {"FAIL": "does not hold", "INCONCLUSIVE": "not decided"}
WORSE = {"rss_peak_bytes": "takes more memory", "load_seconds": "takes longer to load"}
HUMAN = "the human-rated pairs of Lee, WordSim and SimLex"


def issues(candidate: dict) -> list[str]:
    """Known issues of one candidate, the worst first."""
    if candidate["status"] != "ok":
        return [plain(f"It was not measured: {answers.failure(candidate)}")]
    checks = (_gates, _noise, _layers, _resources)
    lines = [line for check in checks for line in check(candidate)]
    judged = {gate["metric"] for gate in [*candidate["gates"], *candidate["claims"]]}
    if free := [describe(name).label for name in metrics_of(candidate) if name not in judged]:
        lines.append(f"Measured, but no gate judges it: {plain('; '.join(free))}.")
    return lines


def _gates(candidate: dict) -> Iterator[str]:
    for verdict, word in GATE.items():
        for gate in deciding(candidate):
            if gate["verdict"] == verdict:
                yield f"Gate {word}: {_reason(gate, candidate)}."
    if not deciding(candidate):
        yield "No gate applies to it, so nothing decides whether it may be used."
    other = {gate["use"] for gate in candidate["gates"] if not gate.get("decides", True)}
    open_uses = {use: candidate["uses"][use] for use in candidate.get("uses") or {} if use in other}
    if unfit := [f"{use} ({GATE[v]})" for use, v in open_uses.items() if v in GATE]:
        yield f"Not for other uses: {', '.join(unfit)}."
    for claim in candidate["claims"]:
        if word := CLAIM.get(claim["verdict"], ""):
            source = plain(claim["source"] or claim["criteria"])
            yield f"Claim {word}: {_reason(claim, candidate)} ({source})."


def _reason(gate: dict, candidate: dict) -> str:
    return plain(answers.reason(answers.explained(gate, candidate)))


def noisy(candidate: dict) -> list[dict]:
    """Gates that passed by a margin smaller than the noise floor of their metric."""
    floors = {(row["name"], row.get("domain")): _noise_floor(row) for row in candidate["metrics"]}
    passed = [gate for gate in deciding(candidate) if gate["verdict"] == "PASS"]
    margins = [abs(gate["bound"] - gate["threshold"]) for gate in passed]
    places = [(gate["metric"], gate.get("domain")) for gate in passed]
    noise = [floors.get(place, 0) for place in places]
    return [g for g, margin, floor in zip(passed, margins, noise, strict=True) if margin < floor]


def _noise_floor(row: dict) -> float:
    """Difference between two measurements of the baseline; 0 where it was measured once."""
    noise = row.get("noise") or {}
    once = noise.get("low") is None or noise.get("high") is None
    return 0.0 if once else noise["high"] - noise["low"]


def _noise(candidate: dict) -> Iterator[str]:
    for gate in noisy(candidate):
        label = plain(label_of(gate, gate["metric"]))
        yield f"{label} passed by less than the difference between two measurements of the baseline."
    within, gaps = [], []
    for row in candidate["metrics"]:
        label, value, baseline = label_of(row), row["value"], row["baseline"]
        if None not in (value, baseline) and 0 < abs(value - baseline) <= _noise_floor(row):
            within.append(label)
        if row.get("why"):
            missing = "no value" if value is None else "no interval"
            gaps.append(f"{plain(label)} has {missing}: {plain(row['why'])}.")
    if within:
        yield f"Within measurement noise: {plain('; '.join(within))}."
    yield from gaps


def _layers(candidate: dict) -> Iterator[str]:
    layers = candidate.get("layers") or []
    if candidate.get("partial"):
        share = f"{100 * candidate['coverage']['share']:.0f} %"
        yield f"Only {share} of the parameters in the matrices that its steps mean were changed."
    notes: dict[str, list[str]] = {}
    for layer in layers:
        if note := text_format.note_of(layer):
            notes.setdefault(note, []).append(layer["name"])
    if unchanged := sum(bool(layer.get("reread")) for layer in layers):
        grid = "already on the grid that they were quantized to: quantizing them proves nothing"
        yield f"{unchanged} of {len(layers)} layers were {grid}."
    for note, names in list(notes.items())[:MANY]:
        yield f"{plain(note)}: {plain(_some(names))}."
    if rest := sum(len(names) for names in list(notes.values())[MANY:]):
        yield f"{rest} more layers have notes of their own, in results.json."


def _resources(candidate: dict) -> Iterator[str]:
    rows = metrics_of(candidate)
    speedup = rows.get("speedup")
    if candidate["kernel"] == "dequantized" and not speedup:
        yield "Weights are stored small but computed in float: no speedup can be claimed."
    for name, worse in WORSE.items():
        row, unit = rows.get(name, {}), METRICS[name].unit
        if (baseline := row.get("baseline")) is None:
            continue
        least = row["value"] if row["low"] is None else row["low"]
        if least > baseline + _noise_floor(row):
            values = f"{number(row['value'], unit)} against {number(baseline, unit)}"
            yield f"It {worse} than the baseline: {values}."
    if speedup and speedup["low"] is not None and speedup["low"] <= 1:
        times = f"{number(speedup['value'])} times ({text_format.interval(speedup)})"
        yield f"That it is faster is not shown: {times}."


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more


def of_the_run(results: dict) -> Iterator[str]:
    """Issues that all candidates share."""
    for grid, names in text_format.layers_by_grid(results["model"]).items():
        layers = f"{len(names)} layer{'s' * (len(names) > 1)} at {grid} ({plain(_some(names))})"
        why = "Quantizing to the same grid seems to lose nothing."
        yield f"The baseline's own weights lie on a low-bit grid: {layers}. {why}"
    baseline, settings = results["candidates"][0], settings_of(results)
    if baseline["status"] != "ok":
        yield from (f"The baseline: {line}" for line in issues(baseline))
    texts = settings.get("calibration.texts")
    if texts and texts == settings.get("evaluation.texts"):
        source = f"different documents of one source, {plain(texts)}"
        yield f"Calibrated and measured on {source}: text of another kind may lose more."
    yield from _two_threads(results)
    if reused := [row["name"] for row in results["candidates"] if row.get("reused")]:
        yield f"Reused from an earlier run with the same inputs: {plain(', '.join(reused))}."


def _two_threads(results: dict) -> Iterator[str]:
    """Candidates that OpenVINO runs on two threads although one is set (`kerf.backends.openvino_.run`)."""
    cpu, resources = results["manifest"].get("cpu") or {}, results.get("resources") or {}
    amx = any(flag.startswith("amx") for flag in cpu.get("flags", ()))
    if not amx or 1 not in (cpu.get("threads"), resources.get("threads")):
        return
    rows = [row for row in results["candidates"] if row.get("backend") == "openvino"]
    steps = {row["name"]: row["steps"][-1]["quantize"] for row in rows}
    computed = {
        name: (step.get("method"), step.get("compute_dtype")) for name, step in steps.items()
    }
    names = [name for name, words in computed.items() if "bfloat16" in words]
    if names:
        yield f"Computed with two threads, since OpenVINO's bfloat16 needs them here: {plain(', '.join(names))}."


def untested(results: dict, candidates: list[dict]) -> Iterator[str]:
    """What the run gives no evidence about; candidates: those meant for release."""
    manifest, settings = results["manifest"], settings_of(results)
    measured = {name for candidate in candidates for name in metrics_of(candidate)}
    texts = settings.get("evaluation.texts")
    rows = [row for candidate in candidates for row in candidate.get("metrics") or []]
    domains = [str(row["domain"]) for row in rows if row.get("domain")]
    names = list(dict.fromkeys(domains)) or [str(texts)]
    sources = "; ".join([*names, *([HUMAN] if "human_spearman" in measured else [])])
    foreign = [
        name for name in ([texts] if isinstance(texts, str) else texts or []) if name not in ENGLISH
    ]
    language = f"that of {', '.join(foreign)}" if foreign else "English"
    yield f"Other hardware than {plain(processor(manifest.get('cpu') or {}))}; no GPU."
    yield f"Other text than {plain(sources)}."
    yield f"Other languages than {plain(language)}."
    samples, seed = settings.get("calibration.samples"), manifest.get("seed")
    yield f"Another draw of calibration text than {samples} samples with seed {seed}."
    if "perplexity" in measured:
        tokens = settings.get("evaluation.seq_len", settings.get("evaluation.context"))
        yield f"Contexts longer than {tokens} tokens."
    ready = [candidate for candidate in candidates if candidate["status"] == "ok"]
    if slow := [row["name"] for row in ready if "speedup" not in metrics_of(row)]:
        yield f"Whether it is faster: {plain(', '.join(slow))}."


def processor(cpu: dict) -> str:
    """Processor and threads of a manifest."""
    threads = cpu.get("threads", "an unknown number of")
    plural = "" if threads == 1 else "s"
    return f"{cpu.get('model') or 'an unknown processor'} with {threads} thread{plural}"
