"""Files of a run for other programs and people: gates.xml for CI, release.md for a pull request, and model cards.

A model card is a README.md with the `model-index` that the Hugging Face hub reads: one value per metric, so the interval,
the baseline and the number of items are in `args`, and without figures of one machine (time, memory).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kerf.core.atomic import write_page
from kerf.core.cache import PACKAGES
from kerf.evaluate.gates import PASS, standing
from kerf.models.registry import preset_of
from kerf.workbench.report import answers, text_format
from kerf.workbench.report.junit import junit
from kerf.workbench.report.known_issues import issues, noisy, of_the_run, processor, untested
from kerf.workbench.report.rendering import render
from kerf.workbench.report.text_format import (
    describe,
    label_of,
    number,
    plain,
    steps_in_words,
    threshold,
)
from kerf.workbench.run.results import TIMED

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TASKS = {"encoder": "sentence-similarity", "causal": "text-generation", "reranker": "text-ranking"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TEXTS = {"news": "Lee background corpus, news", "wiki": "enwiki excerpt"}
HUMAN_RATED = {f"human_spearman_{name.lower()}": name for name in ("Lee", "WordSim", "SimLex")}
HUMAN_RATED |= dict.fromkeys(("human_spearman", "human_spearman_loss"), "Lee, WordSim, SimLex")


def write(results: dict, folder: Path) -> None:
    """Write them into a report's folder, with a model card for each measured release candidate."""
    write_page(folder / "gates.xml", junit(results))
    write_page(folder / "release.md", _release(results))
    for candidate in results["candidates"]:
        path = folder / candidate["name"] / "README.md"
        if candidate["name"] in results["release"] and candidate["status"] == "ok":
            write_page(path, _card(results, candidate))
        else:
            path.unlink(missing_ok=True)  # of an earlier run


def _release(results: dict) -> str:
    """The release checklist of a run, in Markdown."""
    candidates, manifest = results["candidates"], results["manifest"]
    released = [row for row in candidates if row["name"] in results["release"]]
    others = [row for row in candidates if row not in released and row["name"] != "baseline"]
    packages = manifest.get("packages") or {}
    return render(
        "release.md.j2",
        results=results,
        manifest=manifest,
        boxes=[box for candidate in released for box in checklist(candidate)],
        run_issues=list(of_the_run(results)),
        candidates=[(row["name"], standing(row), issues(row)) for row in released + others],
        processor=processor(manifest.get("cpu") or {}),
        packages=[f"{name} {packages[name]}" for name in PACKAGES if name in packages],
        untested=list(untested(results, released)),
    )


def checklist(candidate: dict) -> Iterator[tuple[bool, str]]:
    """(ticked, Markdown) of every box of a release candidate, ticked by what was measured."""
    name, measured = f"**{plain(candidate['name'])}**", candidate["status"] == "ok"
    yield measured, f"{name} was made ({plain(steps_in_words(candidate))}) and measured"
    if not measured:
        return
    for gate in (deciding := answers.deciding(candidate)):
        about, required = describe(gate["metric"]), plain(threshold(gate))
        bound = "" if gate["bound"] is None else f": bound {number(gate['bound'], about.unit)}"
        text = (
            f"{name}: {plain(label_of(gate, gate['metric']))} {required}{bound}, {gate['verdict']}"
        )
        yield gate["verdict"] == PASS, text
    if not deciding:
        yield False, f"{name} is judged by a gate"
    claims = [claim["verdict"] == PASS for claim in candidate["claims"]]
    if claims:
        yield all(claims), f"{name}: {sum(claims)} of {len(claims)} checked claims hold"
    yield not noisy(candidate), f"{name}: no gate was passed within measurement noise"
    layers = candidate.get("layers") or []
    on_grid = any(layer.get("reread") for layer in layers)
    yield not on_grid, f"{name}: no layer was already on its grid"
    yield not any(map(text_format.note_of, layers)), f"{name}: no layer needed a note"
    covered = candidate.get("coverage") or {"share": 1.0}
    text = f"{100 * covered['share']:.1f} % of the parameters in the matrices that its steps mean"
    yield not candidate.get("partial"), f"{name}: {text} were changed"


def _card(results: dict, candidate: dict) -> str:
    """The model card of a measured candidate, in Markdown."""
    from huggingface_hub import ModelCard, ModelCardData

    model, preset = results["model"], preset_of(results["model"]["id"])
    origin = preset.source.origin if preset else model["id"]
    base = origin.partition(",")[0] if preset else origin
    hub_id = base if HUB_ID.fullmatch(base) else None  # a local directory has none
    title = f"{model['id'].rstrip('/').rpartition('/')[2]}-{candidate['name']}"
    steps = [item for step in candidate["steps"] for item in step.items()]
    kinds = [kind for kind, _ in steps]
    methods = [keys["method"] for _, keys in steps if "method" in (keys or {})]
    metadata = ModelCardData(
        model_name=title,
        base_model=hub_id,
        base_model_relation="quantized" if hub_id and "quantize" in kinds else None,
        license=preset.source.licence.lower() if preset else None,
        library_name="kerf",
        pipeline_tag=TASKS.get(model["kind"]),
        tags=list(dict.fromkeys(["kerf", *kinds, *methods])),
        eval_results=list(_eval_results(results, candidate)) or None,
    )
    gates = [answers.explained(gate, candidate) for gate in answers.deciding(candidate)]
    required: dict[tuple, list[str]] = {}
    for gate in gates:
        place = gate["metric"], gate.get("domain")
        required.setdefault(place, []).append(f"{gate['required']}: {gate['verdict']}")
    text = render(
        "model_card.md.j2",
        metadata=metadata.to_yaml(),
        title=title,
        origin=origin if preset or hub_id else "A local model",
        steps=steps_in_words(candidate),
        verdict=answers.answer(candidate, gates),
        results=results,
        candidate=candidate,
        required=required,
        issues=issues(candidate),
        untested=list(untested(results, [candidate])),
    )
    return str(ModelCard(text))


def _eval_results(results: dict, candidate: dict) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    task = TASKS.get(results["model"]["kind"], "other")
    for row in candidate["metrics"]:
        name = row["name"]
        if name in TIMED or not text_format.is_finite(row["value"]):
            continue
        if row.get("domain"):
            dataset = dataset_name = row["domain"]
        elif name in HUMAN_RATED:
            dataset_name = HUMAN_RATED[name]
            dataset = dataset_name.lower().replace(", ", "-")
        else:
            settings = text_format.settings_of(results)
            texts = str(settings["evaluation.texts"])
            dataset = texts.rpartition("/")[2]
            dataset_name = TEXTS.get(texts, dataset)
        args = {key: row[key] for key in ("low", "high", "baseline", "n") if row[key] is not None}
        yield EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset_name,
            dataset_split="evaluation",
            metric_type=name,
            metric_name=describe(name).label,
            metric_value=row["value"],
            metric_args=args,
        )
