"""Tasks of lm-eval for a baseline and a candidate, paired document by document.

Both are passed to lm-eval's HFLM as `kerf.load` opens them, so that its tasks see the exact weights. lm-eval
is an optional extra (`pip install -e 'lib[lm-eval]'`). Its tasks come from the hub or, offline, from a folder
of task files; a task file may call Python code beside it, so name only folders that you trust.
"""

import json
import logging
import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kerf.core.cache import artifact, digest
from kerf.core.digests import sha256
from kerf.core.errors import nearest, refuse
from kerf.core.paths import data_folder
from kerf.data import corpora, segmentation
from kerf.evaluate import causal
from kerf.evaluate import stats as st
from kerf.evaluate.causal_metrics import flips
from kerf.models import families, registry

CHOICES = 4  # words to choose from, in a document of `last_words`
LAST_WORDS: dict[str, Any] = {
    "task": "last_words",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{before}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
    "metadata": {"version": 1},
}


def last_words(folder: Path, source: str = "wiki", count: int = 200, seed: int = 0) -> str:
    """Write a task file: the last word of a passage, among last words of other passages. Returns the task's name.

    source: news, wiki or a text file; its evaluation part is used. Raises InputError for fewer passages than `count`.
    """
    passages = [
        (before, last)
        for document in corpora.evaluation_documents(source)
        for before, last in map(segmentation.last_word, causal.stretches(document))
        if last
    ]
    if count > len(passages):
        raise refuse("passages", count, f"1 to {len(passages)}, the passages of {source}")
    random, words = np.random.default_rng(seed), sorted({last for _, last in passages})
    rows = []
    for index in sorted(random.permutation(len(passages))[:count].tolist()):
        before, last = passages[index]
        others = [word for word in words if word != last]
        choices = random.choice(others, CHOICES - 1, replace=False).tolist()
        answer = int(random.integers(CHOICES))
        choices.insert(answer, last)
        rows.append({"before": before, "choices": choices, "answer": answer})
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "last_words.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {**LAST_WORDS, "dataset_kwargs": {"data_files": {"test": str(data.resolve())}}}
    (folder / "last_words.yaml").write_text(json.dumps(task))  # JSON is YAML
    return LAST_WORDS["task"]


def run(
    model: str,
    candidate: str | Path,
    tasks: list[str],
    folder: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> list[dict]:
    """Scores of a model (candidate empty: the baseline) on every document: rows of task, metric, document, value.

    folder: of task files, beside those of lm-eval. limit: documents of each task.
    Raises InputError, before a model is opened, for an encoder, an unknown task, or without lm-eval.
    """
    manager = check(model, tasks, folder)
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []
    weights = registry.weights_digest(Path(candidate) if candidate else registry.resolve(model))
    key = {"model": model, "candidate": bool(candidate), "weights": weights, "tasks": tasks}
    key |= {"limit": limit, "batch_size": batch_size, "lm_eval": metadata.version("lm_eval")}
    key["files"] = digest([(path.name, sha256(path)) for path in files])

    def make(made: Path) -> None:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        opened = registry.open_source(model, candidate)
        tokenizer = families.causal.tokenizer(registry.resolve(model))
        lm = HFLM(pretrained=opened, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        options = {"task_manager": manager, "limit": limit, "bootstrap_iters": 0}
        results = simple_evaluate(lm, tasks=tasks, **options)
        rows = [
            {"task": task, "metric": name, "document": row["doc_id"], "value": float(row[name])}
            for task, samples in results["samples"].items()
            for row in samples
            for name in row["metrics"]
            if isinstance(row[name], int | float | np.number)
        ]
        (made / "documents.json").write_text(json.dumps(rows))

    return json.loads((artifact("tasks", key, make) / "documents.json").read_text())


def check(model: str, tasks: list[str], folder: str | Path | None = None) -> Any:
    """lm-eval's TaskManager, with the tasks of `folder`. Raises InputError as `run` does."""
    if families.name_of(registry.resolve(model)) != "causal":
        accepted = "a causal language model; the tasks of lm-eval need probabilities"
        raise refuse("model", model, accepted)
    if find_spec("lm_eval") is None:
        accepted = "lm-eval, which is not installed: pip install -e 'lib[lm-eval]'"
        raise refuse("tasks", tasks, accepted)
    os.environ.setdefault("HF_DATASETS_CACHE", str(data_folder() / "hub" / "datasets"))
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    own = TaskManager(include_path=str(folder), include_defaults=False) if folder else None
    if own and {*tasks} <= {*own.all_tasks}:
        return own  # the index of lm-eval's own tasks takes seconds
    manager = TaskManager(include_path=str(folder) if folder else None)
    for task in tasks:
        if task not in manager.all_tasks:
            raise refuse("tasks", task, nearest(task, manager.all_tasks))
    return manager


def compare(before: list[dict], after: list[dict]) -> list[dict]:
    """A row for each task and metric: both means, their difference with its interval over documents, and flips.

    A metric that is 0 or 1 also has `lost`, `gained`, McNemar's exact p and the smallest detectable difference.
    """
    rows, after_values = [], _by_metric(after)
    for (task, metric), values in _by_metric(before).items():
        b = np.array(list(values.values()))
        a = np.array([after_values[task, metric][document] for document in values])
        difference, low, high = st.mean_interval(a - b, np.arange(len(b)))
        row = {"task": task, "metric": metric, "documents": len(b)}
        row |= {"baseline": float(b.mean()), "candidate": float(a.mean())}
        row |= {"difference": difference, "low": low, "high": high}
        is_binary = np.isin([b, a], (0, 1)).all()
        rows.append(row | (flips(b.astype(bool), a.astype(bool)) if is_binary else {}))
    return rows


def _by_metric(rows: list[dict]) -> dict[tuple[str, str], dict[int, float]]:
    """Value by document, by task and metric."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        values.setdefault((row["task"], row["metric"]), {})[row["document"]] = row["value"]
    return values
