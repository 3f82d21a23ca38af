"""The model card of a candidate: README.md with the `model-index` that the Hugging Face hub reads.

The hub's format has one value for a metric, so its interval, the baseline and the number of items stand in `args`.
What depends on one machine (time, memory) stays out of it.
"""

import math
import re

from kerf.evaluate.metrics import METRICS
from kerf.models.registry import MODELS
from kerf.workbench.report.known_issues import issues, plain, untested
from kerf.workbench.report.text_format import (
    answer,
    asked,
    explained,
    interval,
    moment,
    number,
    step_in_words,
)
from kerf.workbench.run.results import TIMED

TASKS = {"encoder": "sentence-similarity", "causal": "text-generation", "reranker": "text-ranking"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
RATED = {
    "human_spearman_lee": "Lee",
    "human_spearman_wordsim": "WordSim",
    "human_spearman_simlex": "SimLex",
    "human_spearman": "Lee, WordSim, SimLex",
    "human_spearman_loss": "Lee, WordSim, SimLex",
}
ON_WIKI = ("cosine_mean_wiki", "retrieval_mrr", "retrieval_mrr_loss", "retrieval_recall_1")


def card(results: dict, candidate: dict) -> str:
    """The file's text, for a candidate that was measured."""
    from huggingface_hub import ModelCard

    return str(
        ModelCard(
            f"---\n{metadata(results, candidate).to_yaml()}\n---\n\n{_body(results, candidate)}"
        )
    )


def metadata(results: dict, candidate: dict):
    """ModelCardData of a candidate."""
    from huggingface_hub import ModelCardData

    model = results["model"]
    kinds = [kind for step in candidate["steps"] for kind in step]
    methods = [
        keys["method"]
        for step in candidate["steps"]
        for keys in step.values()
        if "method" in (keys or {})
    ]
    base = _base(model["id"])
    preset = MODELS.get(model["id"])
    return ModelCardData(
        model_name=title(results, candidate),
        base_model=base,
        base_model_relation="quantized" if base and "quantize" in kinds else None,
        license=preset.source.licence.lower() if preset else None,
        library_name="kerf",
        pipeline_tag=TASKS.get(model["kind"]),
        tags=list(dict.fromkeys(["kerf", *kinds, *methods])),
        eval_results=_results(results, candidate) or None,
    )


def title(results: dict, candidate: dict) -> str:
    """The model's name and the candidate's; of a directory its name alone, since cards are sent to others."""
    return f"{results['model']['id'].rstrip('/').rpartition('/')[2]}-{candidate['name']}"


def _base(model: str) -> str | None:
    """The hub's id of the baseline, where it has one; a directory has none."""
    origin = MODELS[model].source.origin.partition(",")[0] if model in MODELS else model
    return origin if HUB_ID.fullmatch(origin) else None


def _origin(model: str) -> str:
    """The baseline in words that are true elsewhere."""
    return MODELS[model].source.origin if model in MODELS else _base(model) or "A local model"


def _results(results: dict, candidate: dict) -> list:
    from huggingface_hub import EvalResult

    found = []
    for row in candidate["metrics"]:
        if row["name"] in TIMED or row["value"] is None or not math.isfinite(row["value"]):
            continue
        dataset, name = _dataset(results, row["name"])
        args = {key: row[key] for key in ("low", "high", "baseline", "n") if row[key] is not None}
        found.append(
            EvalResult(
                task_type=TASKS.get(results["model"]["kind"], "other"),
                dataset_type=dataset,
                dataset_name=name,
                dataset_split="evaluation",
                metric_type=row["name"],
                metric_name=METRICS[row["name"]].label,
                metric_value=row["value"],
                metric_args=args,
            )
        )
    return found


def _dataset(results: dict, metric: str) -> tuple[str, str]:
    """Identifier and name of the text that a metric was measured on."""
    if metric in RATED:
        return RATED[metric].lower().replace(", ", "-"), RATED[metric]
    own = "wiki" if metric in ON_WIKI else str(results["settings"]["evaluation.texts"]["value"])
    known = {"news": "Lee background corpus, news", "wiki": "enwiki excerpt"}
    return own.rpartition("/")[2], known.get(own, own.rpartition("/")[2])


def _body(results: dict, candidate: dict) -> str:
    gates = [explained(gate, candidate) for gate in candidate["gates"]]
    said, manifest = answer(candidate, gates), results["manifest"]
    steps = "; ".join(step_in_words(step) for step in candidate["steps"])
    lines = [
        f"# {plain(title(results, candidate))}",
        "",
        f"{plain(_origin(results['model']['id']))}, made smaller by Kerf: {plain(steps)}.",
        "",
        f"**May it be used? {said['answer'].capitalize()}**: {plain(said['why'])}.",
        "",
    ]
    lines += [
        "## Size",
        "",
        *_table(["", "This model", "Baseline"], _sizes(results, candidate)),
        "",
    ]
    lines += [
        "## What was measured",
        "",
        *_table(
            ["Metric", "Value", "95 % interval", "Baseline", "Items", "Asked"], _measured(candidate)
        ),
        "",
    ]
    lines += [
        "## Use",
        "",
        "```python",
        "import kerf",
        "",
        'model = kerf.load("path/to/this/folder")',
        "```",
        "",
    ]
    lines += [
        "## Known issues",
        "",
        *(f"- {line}" for line in issues(candidate) or ["Nothing was found."]),
        "",
    ]
    lines += [
        "## What was not tested",
        "",
        *(f"- {line}" for line in untested(results, [candidate])),
        "",
    ]
    lines += [
        "## Provenance",
        "",
        f"Run `{manifest.get('run')}` of {moment(manifest.get('started', ''))}, Kerf {manifest.get('kerf')}, "
        f"Python {manifest.get('python')}, sha256 of the baseline's files `{(manifest.get('data') or {}).get('weights', 'unknown')}`.",
    ]
    return "\n".join(lines) + "\n"


def _sizes(results: dict, candidate: dict) -> list[list[str]]:
    model = results["model"]
    return [
        [
            "Weight files",
            number(candidate["bytes_on_disk"], "bytes"),
            number(model["bytes"], "bytes"),
        ],
        [
            "Bits per weight",
            number(candidate["bits_per_weight"]),
            number(8 * model["bytes"] / model["parameters"]),
        ],
        ["Times smaller", number(candidate["compression_ratio"]), "1"],
    ]


def _measured(candidate: dict) -> list[list[str]]:
    gates = {gate["metric"]: gate for gate in candidate["gates"]}
    rows = []
    for row in candidate["metrics"]:
        about, gate = METRICS[row["name"]], gates.get(row["name"])
        wanted = f"{asked(gate)}: {gate['verdict']}" if gate else "–"
        rows.append(
            [
                about.label,
                number(row["value"], about.unit),
                interval(row, about.unit, row["value"]),
                number(row["baseline"], about.unit),
                number(row["n"]),
                wanted,
            ]
        )
    return rows


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([plain(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]
