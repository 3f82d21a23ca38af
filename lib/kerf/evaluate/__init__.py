"""The evaluate stage: a candidate against the baseline, in fresh processes, on the same inputs.

`encode` makes an artifact with a model's outputs on all evaluation inputs and the time and memory it took; `compare`
turns two of them into metrics with intervals, and per-item scores. One module a family of models defines inputs, outputs
and metrics (`kerf.evaluate.protocol`).
"""

import json
from itertools import product, zip_longest
from pathlib import Path

import numpy as np

from kerf.config import Evaluation
from kerf.config.backends import modules
from kerf.core.cache import artifact, meta, threads
from kerf.core.errors import printable, refuse
from kerf.evaluate import fidelity, latency
from kerf.evaluate import stats as st
from kerf.evaluate.common import read_items, text_digest
from kerf.evaluate.gates import worst_first
from kerf.evaluate.measured_process import run_measured
from kerf.evaluate.metrics import metrics_of
from kerf.evaluate.protocol import Comparison, family_evaluation, of_family
from kerf.evaluate.slices import worst_slices
from kerf.models import families, manifest, registry

PROBES = 8  # evaluation texts whose token ids are compared
__all__ = ["compare", "encode", "kind", "of_family", "read"]


def encode(model: str, candidate: str | Path, spec: Evaluation, noise_floor: bool = False) -> Path:
    """Artifact with the outputs of a candidate (a directory; empty: the baseline), and what `kerf.evaluate.measure` returns.

    noise_floor: other batches, another order and one thread less, to measure how far a model differs from itself.
    Raises InputError for a damaged candidate, RuntimeError when the process dies.
    """
    evaluation, everything = family_evaluation(model), not candidate and not noise_floor
    inputs = evaluation.gather(model, spec)
    request = {
        "probes": _probes(inputs.all),
        **_models(model, candidate),
        "threads": max(1, threads() - noise_floor),
        "seed": int(noise_floor),
        **evaluation.inference_request(inputs, noise_floor, everything),
    }
    weights = registry.weights_digest(Path(candidate) if candidate else registry.resolve(model))
    key = {**request, "candidate": bool(candidate), "weights": weights}
    if (candidate or noise_floor) and evaluation.NEEDS_BASELINE:
        base = encode(model, "", spec)
        request["base"], key["base"] = str(base), meta(base)["key"]

    def make(folder: Path) -> dict:
        return run_measured("kerf.evaluate.measure", request, folder)

    return artifact("encoding", key, make, also=_modules(model, candidate))


def compare(model: str, candidate: str | Path, spec: Evaluation, noise_floor: bool = False) -> Path:
    """Artifact with the metrics of a candidate (a directory; empty: the baseline) against the baseline.

    metrics.json: rows of name, value, low, high, baseline, n, unit. items.parquet: scores of every item.
    pictures.json: data of the figures in the report and the notebook. noise_floor: see `encode`.
    """
    base, other = encode(model, "", spec), encode(model, candidate, spec, noise_floor)
    encodings = {"base": meta(base), "other": meta(other)}
    extensions = metrics_of(families.name_of(registry.resolve(model)))
    key = {
        **{name: encoding["key"] for name, encoding in encodings.items()},
        # The texts alone do not say where each belongs, and how it was rated.
        "spec": spec.model_dump(),
        "texts": text_digest(spec),
        "metrics": [metric.name for metric in extensions],
        # Timings are of one measurement, so a new measurement needs a new comparison.
        "when": [encoding["finished"] for encoding in encodings.values()],
    }

    def make(folder: Path) -> dict:
        return _compare(Comparison(folder, model, candidate, spec, base, other))

    return artifact("comparison", key, make, also=_modules(model, candidate))


def _models(model: str, candidate: str | Path) -> dict[str, str]:
    """What every request to a measured process names."""
    path = str(Path(candidate).resolve()) if candidate else ""
    family = families.name_of(registry.resolve(model))
    return {"model": model, "candidate": path, "family": family}


def _probes(texts: list[str]) -> list[str]:
    """The texts whose tokens baseline and candidate are compared on."""
    return texts[:: max(1, len(texts) // PROBES)][:PROBES]


def check_tokens(candidate: str | Path, probes: list[str], base: list, other: list) -> None:
    """Refuse a candidate that does not read the token ids of the baseline, naming the first text that it reads otherwise."""
    for number, (expected, ids) in enumerate(zip_longest(base, other)):
        if expected != ids:
            text = probes[number % len(probes)][:60]
            accepted = f"the token ids of the baseline; of {text!r} it reads {ids}, not {expected}"
            raise refuse("candidate", str(candidate), printable(accepted, 400))


def _modules(model: str, candidate: str | Path) -> list[str]:
    """Modules that measure a candidate, beside those that this one imports."""
    backend = manifest.verify(Path(candidate)).get("backend") if candidate else None
    evaluation = families.of(registry.resolve(model)).EVALUATION
    return [evaluation, "kerf.evaluate.measure", *(modules(backend) if backend else [])]


def _compare(comparison: Comparison) -> dict:
    model, candidate, folder = comparison.model, comparison.candidate, comparison.folder
    base, other = (meta(path)["result"] for path in (comparison.base, comparison.other))
    evaluation, request = family_evaluation(model), _models(model, candidate)
    inputs = evaluation.gather(model, comparison.spec)
    check_tokens(candidate, _probes(inputs.all), base["ids"], other["ids"])
    rows, pictures = evaluation.compare(comparison, inputs)
    rows += _extension_metrics(request["family"], folder / "items.parquet")
    pictures["slices"] = worst_slices(read_items(folder))
    loads, base_load = np.array(other["load_seconds"]), float(np.median(base["load_seconds"]))
    peaks = (other["rss_peak_bytes"], None, None, base["rss_peak_bytes"])
    rows.append(fidelity.row("rss_peak_bytes", *peaks, 1))
    rows.append(fidelity.row("load_seconds", *st.median_interval(loads), base_load, len(loads)))
    if candidate and latency.is_faster(candidate):
        timed = {"threads": threads(), "latency_input": evaluation.latency_input(inputs)}
        rows.append(latency.metric({**request, **timed}))
    rows = worst_first([{"domain": None, **row} for row in rows])
    (folder / "metrics.json").write_text(json.dumps(rows))
    (folder / "pictures.json").write_text(json.dumps(pictures))
    return {"encode_seconds": other["encode_seconds"]}


def _extension_metrics(family: str, items: Path) -> list[dict]:
    """Rows of metrics that other packages define, one for each source that has items of theirs."""
    import pandas as pd

    table, rows = pd.read_parquet(items), []
    for metric, (domain, own) in product(metrics_of(family), table.groupby("domain", dropna=False)):
        assert metric.measure
        values, documents = metric.measure(own)
        if len(values):
            means = st.Documents(documents).means(values)
            row = fidelity.drawn(metric.name, means, metric.perfect, len(values))
            rows.append({**row, "domain": None if pd.isna(domain) else domain})
    return rows


def read(comparison: Path) -> tuple[list[dict], dict]:
    """Metric rows and data of the figures of a comparison."""
    files = ("metrics.json", "pictures.json")
    rows, pictures = (json.loads((comparison / name).read_text()) for name in files)
    return rows, pictures
