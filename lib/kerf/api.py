"""Compressing and comparing from Python, without notebooks: `kerf.compress` and `kerf.compare`.

>>> import kerf
>>> small = kerf.compress("minilm", method="gptq", bits=4, group_size=64)  # doctest: +SKIP
>>> small.encode(["A cat sat."]).shape  # doctest: +SKIP
(1, 384)
>>> kerf.compare("minilm", small).loc["cosine_mean"]  # doctest: +SKIP
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from kerf import evaluate, pipeline
from kerf.config import METHODS, PRUNING_METHODS, Calibration, Evaluation, parse
from kerf.core import atomic
from kerf.core.errors import one_of, refuse
from kerf.core.paths import data_folder
from kerf.evaluate import ab, comparison_inputs
from kerf.models import manifest, registry
from kerf.models.model_files import CARD

Texts = str | os.PathLike | Iterable[str]
CALIBRATION = tuple(Calibration.model_fields)


def compress(model: str, texts: Texts = "news", method: str = "gptq", **parameters: Any) -> Any:
    """Compress a model by one step, and open the candidate.

    Args:
        model: a name of `kerf list models`, a hub id or a local directory.
        texts: calibration text: news, wiki, a text file with one document a line, or documents.
        method: of `kerf list methods`, for quantization or pruning.
        parameters: keys of the method's step, as in an experiment (`bits=4`), and `samples`, `max_length` and `seed` of
            the calibration.

    Returns:
        What `kerf.load` returns; its `artifact` is the candidate's directory. Made once: the same arguments open it again.

    Raises:
        InputError: for a parameter that is not accepted, before heavy work.
    """
    known = {**PRUNING_METHODS, **METHODS}
    if method not in known:
        raise refuse("method", method, one_of(method, known))
    asked = {key: parameters.pop(key) for key in CALIBRATION if key in parameters}
    preset = registry.MODELS[model].calibration if model in registry.MODELS else {}
    calibration = parse(Calibration, {**preset, **asked, "texts": _named(texts)}, "calibration")
    kind = "quantize" if method in METHODS else "prune"
    folder = pipeline.build(model, [{kind: {"method": method, **parameters}}], calibration)
    opened = registry.load(folder)
    opened.artifact = Path(folder)
    return opened


def compare(a: Any, b: Any, data: Texts = "news", **evaluation: Any) -> pd.DataFrame:
    """Compare two models on the same text, item by item.

    Args:
        a, b: a model's name or directory, a candidate's directory, or what `kerf.compress` gave; both of one model.
        data: evaluation text: news, wiki, a text file with one document a line, or documents.
        evaluation: further keys of `evaluation`, as in an experiment (`sentences=200`).

    Returns:
        A row for each metric. Where `a` is the model itself: value of `b`, low, high (95 % interval), baseline, n. Where
        both are candidates: a, b, their paired difference with low and high, winner.

    Raises:
        InputError: for candidates of two models, and for text that cannot be used.
    """
    spec = parse(Evaluation, {**evaluation, "texts": _named(data)}, "evaluation")
    sides = [_side(each) for each in (a, b)]
    models = {model for model, _ in sides}
    if len(models) > 1:
        raise refuse("b", sides[1][0], f"a candidate of {sides[0][0]}")
    (model, first), (_, second) = sides
    if not first:
        rows = evaluate.read(evaluate.compare(model, second, spec))[0]
        return pd.DataFrame(rows).set_index("name")
    measured = [
        comparison_inputs.candidate_input(
            name, model, manifest.verify(folder)["steps"] if folder else [], folder, spec
        )
        for name, folder in (("a", first), ("b", second))
    ]
    return pd.DataFrame(ab.compare(*measured)["metrics"]).set_index("name")


def _side(given: Any) -> tuple[str, Path | str]:
    """The model, and the candidate's directory; empty for the model itself."""
    folder = getattr(given, "artifact", given)
    if isinstance(folder, str | os.PathLike) and Path(folder, CARD).is_file():
        return manifest.verify(Path(folder))["model"], Path(folder)
    if not isinstance(given, str | os.PathLike):
        raise refuse(
            "model", type(given).__name__, "a name, a directory, or what kerf.compress gave"
        )
    return str(given), ""


def _named(texts: Texts) -> str:
    """A name or file of texts; documents are written into one, by their digest."""
    if isinstance(texts, str | os.PathLike):
        return os.fspath(texts)
    lines = "\n".join(" ".join(str(document).split()) for document in texts)
    path = data_folder() / "texts" / f"{hashlib.sha256(lines.encode()).hexdigest()[:16]}.txt"
    if not path.is_file():
        with atomic.aside(path) as part:
            part.write_text(lines + "\n", encoding="utf-8")
    return str(path)
