"""The evaluate stage: a candidate against the baseline, in a fresh process, on the same texts.

`encode` makes an artifact with the embeddings of all evaluation texts and what loading and encoding
took; `compare` turns two of them into metrics with intervals, and per-item scores.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from kerf import models, texts
from kerf import statistics as st
from kerf.artifacts import artifact, meta, threads
from kerf.errors import Refused
from kerf.evaluate import fidelity
from kerf.steps import Evaluation

BATCH_SIZE = 32


@dataclass(frozen=True)
class Texts:
    """All evaluation texts, and where each set of them stands in the list."""

    all: list[str]
    where: dict[str, slice]
    documents: dict[str, np.ndarray]
    human: dict[str, tuple]


def gather(spec: Evaluation) -> Texts:
    """Sentences, retrieval queries and passages, and every human-rated text. Raises Refused for too few."""
    return _gather(spec, texts.digest(spec.texts))


@lru_cache(maxsize=2)
def _gather(spec: Evaluation, _: str) -> Texts:
    sentences, sentence_documents = texts.evaluation_sentences(spec.texts, spec.sentences)
    queries, passages, passage_documents = texts.cloze_pairs(spec.passages)
    pairs = texts.human_pairs()
    sets = {"sentences": sentences, "queries": queries, "passages": passages}
    sets |= {name: items for name, (items, *_) in pairs.items()}
    where, all_texts = {}, []
    for name, items in sets.items():
        where[name] = slice(len(all_texts), len(all_texts) + len(items))
        all_texts += items
    documents = {"sentences": np.array(sentence_documents), "passages": np.array(passage_documents)}
    human = {n: (np.array(left), np.array(right), score) for n, (_, left, right, score) in pairs.items()}
    return Texts(all_texts, where, documents, human)


def encode(model: str, candidate: str | Path, spec: Evaluation, again: bool = False, device: str = "cpu") -> Path:
    """Artifact with embeddings.safetensors and the figures of `kerf.evaluate.measure`.

    `again` is the noise floor: the same model with other batches, another order and another number of
    threads. Raises Refused for a damaged candidate, RuntimeError when the process dies.
    """
    models.check_encoder(model, "the comparison")
    everything = gather(spec)
    request = {
        "model": model,
        "candidate": str(Path(candidate).resolve()) if candidate else "",
        "texts": everything.all,
        "threads": threads() if not again else max(1, threads() - 1),
        "batch_size": BATCH_SIZE if not again else BATCH_SIZE * 3 // 2,
        "seed": 1 if again else 0,
        "device": device,
    }
    weights = models.weights_digest(Path(candidate) if candidate else models.resolve(model))
    key = {**request, "candidate": bool(candidate), "weights": weights}

    def make(folder: Path) -> dict:
        (folder / "request.json").write_text(json.dumps(request))
        _run(folder / "request.json")
        figures = json.loads((folder / "figures.json").read_text())
        (folder / "request.json").unlink()
        return figures

    return artifact("encoding", key, make)


def _run(request: Path) -> None:
    # A caller's OMP_NUM_THREADS must not decide for the measured process: the request does.
    threads_asked = str(json.loads(request.read_text())["threads"])
    done = subprocess.run(
        [sys.executable, "-m", "kerf.evaluate.measure", str(request)],
        env={**os.environ, "OMP_NUM_THREADS": threads_asked},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if "kerf.errors.Refused: " in last:
            raise Refused(last.partition("kerf.errors.Refused: ")[2])
        raise RuntimeError(f"the measured process ended with {done.returncode}: {last}")


def compare(model: str, candidate: str | Path, spec: Evaluation, again: bool = False, device: str = "cpu") -> Path:
    """Artifact with the metrics of `candidate` (a directory; empty: the baseline) against the baseline.

    metrics.json: rows of name, value, low, high, baseline, n, unit. items.parquet: per-sentence cosine
    and per-query reciprocal ranks. pictures.json: histograms for the report.
    """
    base = encode(model, "", spec, device=device)
    other = encode(model, candidate, spec, again, device)
    key = {"base": meta(base)["key"], "other": meta(other)["key"]}
    # Timings are of one measurement: a comparison made again takes in the encoding that was made again.
    key["when"] = [meta(base)["finished"], meta(other)["finished"]]
    return artifact("comparison", key, lambda folder: _compare(folder, gather(spec), base, other))


def _compare(folder: Path, everything: Texts, base: Path, other: Path) -> dict:
    before, after = (_embeddings(path, everything) for path in (base, other))
    sentences, passages = everything.documents["sentences"], everything.documents["passages"]
    wiki = (before["passages"], after["passages"], passages)
    pairs = [(e["queries"], e["passages"]) for e in (before, after)]
    retrieved, ranks = fidelity.retrieval(*pairs, passages)
    rows = fidelity.cosines(before["sentences"], after["sentences"], sentences, wiki)
    rows += fidelity.similarities(before["sentences"], after["sentences"], sentences)
    rows += fidelity.human(everything.human, before, after)
    rows += retrieved + _resources(meta(base)["result"], meta(other)["result"])
    (folder / "metrics.json").write_text(json.dumps(rows))
    _write_items(folder / "items.parquet", everything, before, after, ranks)
    (folder / "pictures.json").write_text(json.dumps(_histograms(before["sentences"], after["sentences"])))
    return {"encode_seconds": meta(other)["result"]["encode_seconds"]}


def _embeddings(path: Path, everything: Texts) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    rows = load_file(path / "embeddings.safetensors")["embeddings"].astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("the model gives embeddings with NaN or infinity")
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return {name: rows[where] for name, where in everything.where.items()}


def _resources(base: dict, other: dict) -> list[dict]:
    load = st.median_interval(np.array(other["load_seconds"]))
    usual = float(np.median(base["load_seconds"]))
    peak, base_peak = other["rss_peak_bytes"], base["rss_peak_bytes"]
    return [
        fidelity.row("rss_peak_bytes", peak, None, None, base_peak, 1),
        fidelity.row("load_seconds", *load, usual, len(other["load_seconds"])),
    ]


def _write_items(path: Path, everything: Texts, before: dict, after: dict, ranks: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cosine = (before["sentences"] * after["sentences"]).sum(1)
    tables = [
        ("cosine", everything.all[everything.where["sentences"]], everything.documents["sentences"], None, cosine),
        ("reciprocal_rank", everything.all[everything.where["queries"]], everything.documents["passages"], *ranks.T),
    ]
    rows = [
        {"metric": metric, "document": int(document), "text": text, "candidate": float(value),
         "baseline": 1.0 if base is None else float(base[index])}
        for metric, items, documents, base, values in tables
        for index, (text, document, value) in enumerate(zip(items, documents, values, strict=True))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)


def _histograms(before: np.ndarray, after: np.ndarray) -> dict:
    """Counts of pairwise sentence similarities of both models, over the same edges."""
    upper = np.triu_indices(len(before), 1)
    values = [(e @ e.T)[upper] for e in (before, after)]
    edges = np.linspace(min(v.min() for v in values), max(v.max() for v in values) + 1e-9, 61)
    counts = [np.histogram(v, edges)[0].tolist() for v in values]
    return {"edges": edges.tolist(), "baseline": counts[0], "candidate": counts[1]}


def read(comparison: Path) -> tuple[list[dict], dict]:
    """Metric rows and histograms of a comparison."""
    return tuple(json.loads((comparison / name).read_text()) for name in ("metrics.json", "pictures.json"))
