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
from kerf.evaluate import ab
from kerf.evaluate.comparison_inputs import candidate_input
from kerf.models import manifest, registry
from kerf.models.model_files import CARD

Texts = str | os.PathLike[str] | Iterable[str]


def compress(
    model: str, texts: Texts | None = None, method: str = "gptq", **parameters: Any
) -> Any:
    """Compress a model by one step, and open the candidate as `kerf.load` does; its `artifact` is the candidate's directory.

    model: a name of `kerf list models`, a hub id or a local directory. texts: calibration text: a bundled
    source, a file (docs/data.md), or documents; a mixture of bundled sources by default. method: of `kerf list methods`, for quantization or pruning. parameters: keys of the method's
    step, as in an experiment (`bits=4`), and `samples`, `max_length` and `seed` of the calibration.

    A candidate is made once: the same arguments open it again. Raises InputError for a parameter that is not accepted, before
    heavy work.
    """
    methods = {**PRUNING_METHODS, **METHODS}
    if method not in methods:
        raise refuse("method", method, one_of(method, methods))
    preset = known.calibration if (known := registry.preset_of(model)) else {}
    keys = [key for key in Calibration.model_fields if key in parameters]
    options = {**preset, **{key: parameters.pop(key) for key in keys}, **_texts(texts)}
    calibration = parse(Calibration, options, "calibration")
    kind = "quantize" if method in METHODS else "prune"
    folder = pipeline.build(model, [{kind: {"method": method, **parameters}}], calibration)
    opened = registry.load(folder)
    opened.artifact = Path(folder)
    return opened


def compare(a: Any, b: Any, data: Texts | None = None, **evaluation: Any) -> pd.DataFrame:
    """Compare two models on the same text, item by item.

    a, b: a model's name or directory, a candidate's directory, or an opened candidate of `kerf.compress`; both of one model.
    data: evaluation text, as `texts` of `compress`. evaluation: further keys of `evaluation`, as in an experiment.

    Returns a row for each metric of each source, the worst source first. Where `a` is the model itself: value of `b`, low, high
    (95 % interval), baseline, n. Where it is
    a candidate: a, b, their paired difference with low and high, winner. Raises InputError for candidates of two models, and for
    text that cannot be used.
    """
    spec = parse(Evaluation, {**evaluation, **_texts(data)}, "evaluation")
    (model, folder_a), (other, folder_b) = _side(a), _side(b)
    if model != other:  # two names, perhaps of one model
        digests = {registry.weights_digest(registry.resolve(name)) for name in (model, other)}
        if len(digests) > 1:
            raise refuse("b", other, f"a candidate of {model}")
    if not folder_a:
        rows = evaluate.read(evaluate.compare(model, folder_b or "", spec))[0]
        return pd.DataFrame(rows).set_index("name")
    inputs = []
    for name, folder in (("a", folder_a), ("b", folder_b)):
        steps = manifest.verify(folder)["steps"] if folder else []
        inputs.append(candidate_input(name, model, steps, folder or "", spec))
    return pd.DataFrame(ab.compare(*inputs)["metrics"]).set_index("name")


def _side(side: Any) -> tuple[str, Path | None]:
    """The model of one side of a comparison, and the candidate's directory; None for the model itself."""
    folder = getattr(side, "artifact", side)
    if isinstance(folder, str | os.PathLike) and Path(folder, CARD).is_file():
        return manifest.verify(Path(folder))["model"], Path(folder)
    if not isinstance(side, str | os.PathLike):
        accepted = "a name, a directory, or what kerf.compress returned"
        raise refuse("model", type(side).__name__, accepted)
    return os.fspath(side), None


def _texts(texts: Texts | None) -> dict[str, str]:
    """The key `texts` of a section; without it, the sources that are the default."""
    return {} if texts is None else {"texts": _file_of(texts)}


def _file_of(texts: Texts) -> str:
    """A name or file of texts; documents are written into a file that is named by their digest."""
    if isinstance(texts, str | os.PathLike):
        return os.fspath(texts)
    lines = "\n".join(" ".join(str(document).split()) for document in texts)
    path = data_folder() / "texts" / f"{hashlib.sha256(lines.encode()).hexdigest()[:16]}.txt"
    if not path.is_file():
        with atomic.aside(path) as part:
            part.write_text(lines + "\n", encoding="utf-8")
    return str(path)
