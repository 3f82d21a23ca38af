"""What the evaluations of the families share: cached inputs, inference in random order, and per-item scores.

items.parquet, by which `kerf.evaluate.ab` pairs two candidates, has one row per item: `metric` (its group), `document` (the
unit of resampling), `domain` (source of its text, if any), `text` (for readers), `baseline` and `candidate` (scores). Pairs of texts have `left` and `right`,
numbers of texts, and `score`, the human rating; tokens have the columns that `kerf.evaluate.causal_metrics` gives them.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kerf.config import Evaluation
from kerf.core.cache import digest
from kerf.core.finite import check_finite
from kerf.data import corpora, datasets, own_ratings
from kerf.data.bundled import TEXTS
from kerf.evaluate.protocol import Table
from kerf.models import registry
from kerf.models.families import lengths

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_SIZE, GLANCE_SIZE = 32, 64
INDICES = ("document", "left", "right", "position")  # columns of items.parquet that are integers
KNOWN_BY = 100  # characters of a long text
Inputs = TypeVar("Inputs")


def cached(gather: Callable[[Path, Evaluation], Inputs]) -> Callable[[str, Evaluation], Inputs]:
    """Turn gather(folder of the tokenizer, spec) into gather(model, spec), cached by weights and text."""

    @lru_cache(maxsize=2)
    def by_content(folder: Path, _weights: str, spec: Evaluation, _texts: str) -> Inputs:
        return gather(folder, spec)

    def by_model(model: str, spec: Evaluation) -> Inputs:
        folder = registry.resolve(model)
        weights, texts = registry.weights_digest(folder), text_digest(spec)
        return by_content(lengths.inner(folder), weights, spec, texts)

    return by_model


def text_digest(spec: Evaluation) -> str:
    """Digest of all text that an evaluation reads, and of what it must not overlap."""
    judged = {*spec.retrieval, *spec.classification, *spec.similarity}
    names = {*corpora.names_of(spec.texts), *(judged & TEXTS.keys())}
    relatives = sorted({relative for name in names for relative in corpora.relatives(name)})
    own = {name: own_ratings.digest(name) for name in judged - TEXTS.keys()}
    return digest({name: corpora.digest(name) for name in relatives} | own)


def readable(collection: datasets.Retrieval, tokenizer: Any) -> datasets.Retrieval:
    """The collection without texts that have no token. Raises InputError for fewer than two queries left."""
    sides = (collection.queries, collection.passages)
    known = collection.only(*(lengths.have_tokens(tokenizer, side) for side in sides))
    lengths.check_readable("evaluation.queries", len(known.queries), len(sides[0]))
    return known


def of_domain(rows: list[dict], source: str) -> list[dict]:
    """Metric rows of texts of one source, or of one task."""
    return [{**row, "domain": source} for row in rows]


def batched_request(inputs: list, noise_floor: bool) -> dict:
    """Request for `run_shuffled`."""
    return {"inputs": inputs, "batch_size": BATCH_SIZE * 3 // 2 if noise_floor else BATCH_SIZE}


def run_shuffled(predict: Callable[..., np.ndarray], request: dict, folder: Path) -> dict:
    """Write predict(inputs) to outputs.npy; the model reads them in random order. Raises ValueError for NaN or infinity."""
    inputs = request["inputs"]
    order = np.random.default_rng(request["seed"]).permutation(len(inputs))
    shuffled = [inputs[index] for index in order]
    clock = time.perf_counter()
    rows = predict(shuffled, batch_size=request["batch_size"], show_progress_bar=False)
    seconds = time.perf_counter() - clock
    outputs = np.empty(rows.shape, np.float32)
    outputs[order] = rows
    check_finite(outputs, inputs)
    np.save(folder / "outputs.npy", outputs)
    return {"encode_seconds": seconds}


def read_outputs(encoding: Path) -> np.ndarray:
    """What `run_shuffled` wrote, in float64."""
    return np.load(encoding / "outputs.npy").astype(np.float64)


def group(metric: str, **columns: Any) -> "pa.Table":
    """Rows of one metric for items.parquet. columns: (items,) each, or one `domain` for all; scores become float32."""
    import pyarrow as pa

    size = len(columns["candidate"])
    arrays = {"metric": pa.array([metric] * size, pa.string()).dictionary_encode()}
    for name, values in columns.items():
        if name == "domain":
            arrays[name] = pa.array([values] * size, pa.string()).dictionary_encode()
        elif name in ("text", "label"):
            arrays[name] = pa.array(values, pa.string()).dictionary_encode()
        else:
            dtype = np.int32 if name in INDICES else np.float32
            arrays[name] = pa.array(np.asarray(values).astype(dtype))
    return pa.table(arrays)


def write_items(comparison: Path, groups: "list[pa.Table]") -> None:
    """Write groups to items.parquet; a column that a group does not have is empty there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    items = pa.concat_tables(groups, promote_options="default").unify_dictionaries()
    pq.write_table(items, comparison / "items.parquet", compression="zstd")


def read_items(comparison: Path, metric: str = "") -> Any:
    """items.parquet, or only its rows of a metric, as a pandas.DataFrame."""
    import pandas as pd

    items = pd.read_parquet(comparison / "items.parquet")
    return items.query("metric == @metric") if metric else items


def items_of(items: Any, metric: str, domain: str | None) -> Any:
    """Rows of a table of items with that metric and domain; tables of earlier runs have no domains."""
    chosen = items[items.metric == metric]
    return chosen[chosen.domain == domain] if domain and "domain" in chosen else chosen


def table(rows: Any, caption: str, **formatting: Any) -> Table:
    """A pandas.DataFrame as a table. formatting: arguments of Styler.format."""
    return rows.style.format(**formatting).hide(axis="index").set_caption(caption)
