"""The evaluate stage: a candidate against the baseline, in a fresh process, on the same texts.

`encode` makes an artifact with a model's answers to all evaluation texts and what loading and answering
took; `compare` turns two of them into metrics with intervals, and per-item scores. What the answers are
and how they compare stands in one file a kind of model.
"""

import json
from pathlib import Path
from types import ModuleType

import numpy as np

from kerf.config import Evaluation
from kerf.config.backends import modules
from kerf.core.cache import artifact, meta, threads
from kerf.evaluate import fidelity, latency
from kerf.evaluate import stats as st
from kerf.evaluate.by_family import kind, of_family
from kerf.evaluate.measured_process import run_measured
from kerf.evaluate.metrics import metrics_of
from kerf.models import families, manifest, registry

__all__ = ["compare", "encode", "kind", "of_family", "read"]


def encode(model: str, candidate: str | Path, spec: Evaluation, again: bool = False) -> Path:
    """Artifact with a model's answers and the figures of `kerf.evaluate.measure`.

    `again` is the noise floor: the same model with other batches, another order and another number of
    threads. Raises InputError for a damaged candidate, RuntimeError when the process dies.
    """
    how = kind(model)
    request = {
        "model": model,
        "candidate": str(Path(candidate).resolve()) if candidate else "",
        "kind": families.name_of(registry.resolve(model)),
        "threads": threads() if not again else max(1, threads() - 1),
        "seed": 1 if again else 0,
        **how.request(how.gather(model, spec), again),
    }
    if (candidate or again) and how.NEEDS_BASE:
        base = encode(model, "", spec)
        request["base"], based = str(base), {"base": meta(base)["key"]}
    else:
        based = {}
    weights = registry.weights_digest(Path(candidate) if candidate else registry.resolve(model))
    key = {**request, "candidate": bool(candidate), "weights": weights, **based}

    def make(folder: Path) -> dict:
        (folder / "request.json").write_text(json.dumps(request))
        run_measured("kerf.evaluate.measure", folder / "request.json")
        figures = json.loads((folder / "figures.json").read_text())
        (folder / "request.json").unlink()
        return figures

    return artifact("encoding", key, make, also=_code(how, candidate))


def compare(model: str, candidate: str | Path, spec: Evaluation, again: bool = False) -> Path:
    """Artifact with the metrics of `candidate` (a directory; empty: the baseline) against the baseline.

    metrics.json: rows of name, value, low, high, baseline, n, unit. items.parquet: scores of every item.
    pictures.json: what the report and the notebook draw.
    """
    base = encode(model, "", spec)
    other = encode(model, candidate, spec, again)
    key = {"base": meta(base)["key"], "other": meta(other)["key"]}
    # Timings are of one measurement: a comparison made again takes in the encoding that was made again.
    key["restored"] = spec.restored
    key["metrics"] = [
        metric.name for metric in metrics_of(families.name_of(registry.resolve(model)))
    ]
    key["when"] = [meta(base)["finished"], meta(other)["finished"]]
    return artifact(
        "comparison",
        key,
        lambda folder: _compare(folder, model, candidate, spec, base, other),
        also=_code(kind(model), candidate),
    )


def _code(how: ModuleType, candidate: str | Path) -> list[str]:
    """Modules that measure a candidate of a family, beside those that this one imports."""
    library = manifest.verify(Path(candidate)).get("backend") if candidate else None
    return [how.__name__, "kerf.evaluate.measure", *(modules(library) if library else [])]


def _compare(
    folder: Path,
    model: str,
    candidate: str | Path,
    spec: Evaluation,
    base: Path,
    other: Path,
) -> dict:
    how = kind(model)
    rows, pictures = how.compare(folder, how.gather(model, spec), base, other)
    rows += _brought(families.name_of(registry.resolve(model)), folder)
    pictures["restored"] = how.restored(model, candidate, spec, base) if candidate else []
    rows += _resources(meta(base)["result"], meta(other)["result"])
    if candidate and latency.is_faster(candidate):
        asked = {
            "model": model,
            "candidate": str(Path(candidate).resolve()),
            "kind": families.name_of(registry.resolve(model)),
        }
        rows.append(
            latency.metric(
                {
                    **asked,
                    "threads": threads(),
                    "asked": how.sample(how.gather(model, spec)),
                }
            )
        )
    (folder / "metrics.json").write_text(json.dumps(rows))
    (folder / "pictures.json").write_text(json.dumps(pictures))
    return {"encode_seconds": meta(other)["result"]["encode_seconds"]}


def _brought(family: str, folder: Path) -> list[dict]:
    """Rows of metrics that other code brings, from the table of items."""
    import pandas as pd

    found = metrics_of(family)
    items = pd.read_parquet(folder / "items.parquet") if found else None
    return [fidelity.mean(metric.name, *metric.measure(items), metric.perfect) for metric in found]


def _resources(base: dict, other: dict) -> list[dict]:
    load = st.median_interval(np.array(other["load_seconds"]))
    usual = float(np.median(base["load_seconds"]))
    peak, base_peak = other["rss_peak_bytes"], base["rss_peak_bytes"]
    return [
        fidelity.row("rss_peak_bytes", peak, None, None, base_peak, 1),
        fidelity.row("load_seconds", *load, usual, len(other["load_seconds"])),
    ]


def read(comparison: Path) -> tuple[list[dict], dict]:
    """Metric rows and histograms of a comparison."""
    return tuple(
        json.loads((comparison / name).read_text()) for name in ("metrics.json", "pictures.json")
    )
