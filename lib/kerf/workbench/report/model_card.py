"""The model card of a candidate: README.md with the `model-index` that the Hugging Face hub reads.

The hub stores one value per metric, so the interval, the baseline and the number of items are in `args`. Figures of
one machine (time, memory) are left out of the index.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kerf.evaluate.metrics import METRICS
from kerf.models.registry import MODELS
from kerf.workbench.report.known_issues import issues, untested
from kerf.workbench.report.rendering import render
from kerf.workbench.report.text_format import answer, explained, settings_of, steps_in_words
from kerf.workbench.run.results import TIMED

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TASKS = {"encoder": "sentence-similarity", "causal": "text-generation", "reranker": "text-ranking"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TEXTS = {"news": "Lee background corpus, news", "wiki": "enwiki excerpt"}
HUMAN_RATED = {f"human_spearman_{name.lower()}": name for name in ("Lee", "WordSim", "SimLex")}
HUMAN_RATED |= dict.fromkeys(("human_spearman", "human_spearman_loss"), "Lee, WordSim, SimLex")
ON_WIKI = ("cosine_mean_wiki", "retrieval_mrr", "retrieval_mrr_loss", "retrieval_recall_1")


def card(results: dict, candidate: dict) -> str:
    """The Markdown of a measured candidate."""
    from huggingface_hub import ModelCard

    model = results["model"]
    gates = [explained(gate, candidate) for gate in candidate["gates"]]
    base = _hub_id(model["id"])
    text = render(
        "model_card.md.j2",
        metadata=metadata(results, candidate).to_yaml(),
        title=title(results, candidate),
        origin=MODELS[model["id"]].source.origin
        if model["id"] in MODELS
        else base or "A local model",
        steps=steps_in_words(candidate),
        verdict=answer(candidate, gates),
        candidate=candidate,
        model=model,
        registry=METRICS,
        gates={gate["metric"]: f"{gate['required']}: {gate['verdict']}" for gate in gates},
        issues=issues(candidate),
        untested=list(untested(results, [candidate])),
        manifest=results["manifest"],
    )
    return str(ModelCard(text))


def metadata(results: dict, candidate: dict) -> ModelCardData:
    """The YAML header of a model card."""
    from huggingface_hub import ModelCardData

    model = results["model"]
    steps = [item for step in candidate["steps"] for item in step.items()]
    kinds = [kind for kind, _ in steps]
    methods = [keys["method"] for _, keys in steps if "method" in (keys or {})]
    base, preset = _hub_id(model["id"]), MODELS.get(model["id"])
    return ModelCardData(
        model_name=title(results, candidate),
        base_model=base,
        base_model_relation="quantized" if base and "quantize" in kinds else None,
        license=preset.source.licence.lower() if preset else None,
        library_name="kerf",
        pipeline_tag=TASKS.get(model["kind"]),
        tags=list(dict.fromkeys(["kerf", *kinds, *methods])),
        eval_results=list(_eval_results(results, candidate)) or None,
    )


def title(results: dict, candidate: dict) -> str:
    """The model's name, without the directories of a local path, and the candidate's."""
    return f"{results['model']['id'].rstrip('/').rpartition('/')[2]}-{candidate['name']}"


def _hub_id(model: str) -> str | None:
    """The hub's id of the baseline; a local directory has none."""
    origin = MODELS[model].source.origin.partition(",")[0] if model in MODELS else model
    return origin if HUB_ID.fullmatch(origin) else None


def _eval_results(results: dict, candidate: dict) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    for row in candidate["metrics"]:
        if row["name"] in TIMED or row["value"] is None or not math.isfinite(row["value"]):
            continue
        dataset_type, dataset_name = _dataset(results, row["name"])
        args = {key: row[key] for key in ("low", "high", "baseline", "n") if row[key] is not None}
        yield EvalResult(
            task_type=TASKS.get(results["model"]["kind"], "other"),
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_split="evaluation",
            metric_type=row["name"],
            metric_name=METRICS[row["name"]].label,
            metric_value=row["value"],
            metric_args=args,
        )


def _dataset(results: dict, metric: str) -> tuple[str, str]:
    """Identifier and name of the data that a metric was measured on."""
    if metric in HUMAN_RATED:
        name = HUMAN_RATED[metric]
        return name.lower().replace(", ", "-"), name
    texts = "wiki" if metric in ON_WIKI else str(settings_of(results)["evaluation.texts"])
    identifier = texts.rpartition("/")[2]
    return identifier, TEXTS.get(texts, identifier)
