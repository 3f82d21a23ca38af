"""Tasks of lm-eval for a baseline and a candidate, paired document by document.

Both are handed to lm-eval's HFLM as `kerf.load` opens them, so that its tasks see the exact weights. lm-eval
is an optional extra (`pip install -e 'lib[lm-eval]'`). Its tasks come from the hub or, offline, from a folder
of task files; a task file may call Python code beside it, so name only folders that you trust.
"""

import json
import logging
import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from kerf.core.cache import artifact, digest
from kerf.core.digests import sha256
from kerf.core.errors import nearest, refuse
from kerf.core.paths import data_folder
from kerf.data import corpora, segmentation
from kerf.evaluate import causal
from kerf.evaluate import stats as st
from kerf.evaluate.causal_metrics import detectable
from kerf.models import families, registry

CHOICES = 4  # words to choose from, in a document of `last_words`


def last_words(folder: Path, source: str = "wiki", count: int = 200, seed: int = 0) -> str:
    """Write a task file: the last word of a passage, among words that end others. Returns the task's name.

    source: news, wiki or a text file; its evaluation part is used. Raises InputError for fewer passages than `count`.
    """
    found = [
        (before, last)
        for document in corpora.evaluation_documents(source)
        for before, last in _ends(document)
    ]
    if count > len(found):
        raise refuse("passages", count, f"1 to {len(found)}, the passages of {source}")
    draw = np.random.default_rng(seed)
    words, rows = sorted({last for _, last in found}), []
    for place in sorted(draw.permutation(len(found))[:count].tolist()):
        before, last = found[place]
        others = draw.choice(
            [word for word in words if word != last], CHOICES - 1, replace=False
        ).tolist()
        answer = int(draw.integers(CHOICES))
        rows.append(
            {
                "before": before,
                "choices": [*others[:answer], last, *others[answer:]],
                "answer": answer,
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "last_words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "last_words",
        "dataset_path": "json",
        "output_type": "multiple_choice",
        "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str((folder / "last_words.jsonl").resolve())}},
        "doc_to_text": "{{before}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1},
    }
    (folder / "last_words.yaml").write_text(json.dumps(task))  # JSON is YAML
    return task["task"]


def _ends(document: str) -> list[tuple[str, str]]:
    """(text before, last word) of stretches of whole sentences that end with a word."""
    return [found for found in map(segmentation.last_word, causal.stretches(document)) if found[1]]


def run(
    model: str,
    candidate: str | Path,
    tasks: list[str],
    folder: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> list[dict]:
    """What a model (candidate empty: the baseline) gets for every document: rows of task, metric, document, value.

    folder: of task files, beside those that lm-eval brings. limit: documents of each task.
    Raises InputError, before a model is opened, for an encoder, an unknown task, or without lm-eval.
    """
    manager = check(model, tasks, folder)
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []
    weights = registry.weights_digest(Path(candidate) if candidate else registry.resolve(model))
    key = {
        "model": model,
        "candidate": bool(candidate),
        "weights": weights,
        "tasks": tasks,
        "limit": limit,
        "batch_size": batch_size,
        "lm_eval": metadata.version("lm_eval"),
        "files": digest([(path.name, sha256(path)) for path in files]),
    }

    def make(made: Path) -> None:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        opened = registry.open_source(model, candidate)
        reader = families.causal.tokenizer(registry.resolve(model))
        asked = HFLM(
            pretrained=opened,
            tokenizer=reader,
            backend="causal",
            batch_size=batch_size,
        )
        found = simple_evaluate(
            asked, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=0
        )
        (made / "documents.json").write_text(json.dumps(_rows(found["samples"])))

    return json.loads((artifact("tasks", key, make) / "documents.json").read_text())


def check(model: str, tasks: list[str], folder: str | Path | None = None):
    """lm-eval's index of tasks, with those of `folder`. Raises InputError as `run` does."""
    if families.name_of(registry.resolve(model)) != "causal":
        raise refuse(
            "model", model, "a causal language model; the tasks of lm-eval ask for probabilities"
        )
    if find_spec("lm_eval") is None:
        raise refuse(
            "tasks", tasks, "lm-eval, which is not installed: pip install -e 'lib[lm-eval]'"
        )
    os.environ.setdefault("HF_DATASETS_CACHE", str(data_folder() / "hub" / "datasets"))
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    own = TaskManager(include_path=str(folder), include_defaults=False) if folder else None
    if own and {*tasks} <= {*own.all_tasks}:
        return own  # the index of those that lm-eval brings takes seconds
    every = TaskManager(include_path=str(folder) if folder else None)
    for task in tasks:
        if task not in every.all_tasks:
            raise refuse("tasks", task, nearest(task, every.all_tasks))
    return every


def _rows(samples: dict[str, list[dict]]) -> list[dict]:
    """Every metric of every document that is a number, in lm-eval's order."""
    return [
        {
            "task": task,
            "metric": metric,
            "document": sample["doc_id"],
            "value": float(sample[metric]),
        }
        for task, answered in samples.items()
        for sample in answered
        for metric in sample["metrics"]
        if isinstance(sample[metric], int | float | np.number)
    ]


def compare(before: list[dict], after: list[dict]) -> list[dict]:
    """A row for each task and metric: both means, their difference and its interval over documents, and flips.

    Of a metric that is 0 or 1: `lost`, `gained`, McNemar's exact p and the smallest difference that so many
    documents would have shown.
    """
    rows = []
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in before):
        old, new = (
            {
                row["document"]: row["value"]
                for row in side
                if (row["task"], row["metric"]) == (task, metric)
            }
            for side in (before, after)
        )
        b, a = np.array([old[each] for each in old]), np.array([new[each] for each in old])
        difference, low, high = st.mean_interval(a - b, np.arange(len(b)))
        rows.append(
            {
                "task": task,
                "metric": metric,
                "baseline": float(b.mean()),
                "candidate": float(a.mean()),
                "difference": difference,
                "low": low,
                "high": high,
                "documents": len(b),
            }
        )
        if np.isin(np.concatenate([b, a]), (0, 1)).all():
            lost, gained, p = st.mcnemar(b.astype(bool), a.astype(bool))
            rows[-1] |= {
                "lost": lost,
                "gained": gained,
                "mcnemar_p": p,
                "detectable": detectable(len(b), lost + gained),
            }
    return rows
