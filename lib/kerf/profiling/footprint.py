"""Candidates as a service would run them: what each takes (`kerf.profiling.serving_benchmark`) and what small vectors cost, measured once and kept."""

import json
from pathlib import Path

import numpy as np

from kerf.config import Calibration, Evaluation, Resources
from kerf.config.backends import modules
from kerf.core.atomic import write_json
from kerf.core.cache import artifact, threads
from kerf.data import corpora, segmentation
from kerf.models import families, manifest, registry
from kerf.profiling import serving_benchmark

COUNT = max(serving_benchmark.BATCHES)  # texts of each length


def measure(
    model: str,
    candidates: dict[str, Path],
    calibration: Calibration,
    evaluation: Evaluation,
    asked: Resources,
) -> Path:
    """Artifact with rows.json, as `kerf.profiling.serving_benchmark.measure` gives them, and vectors.json, as `kerf.profiling.vector_quantization.measure` does.

    candidates: directory by name. Vectors are of encoders only; their ranges come from calibration text. Raises InputError for a
    model that is neither an encoder nor a reranker, RuntimeError when a process of the baseline dies.
    """
    registry.check_kind(model, "resources", "encoder", "reranker")
    key = {
        "model": registry.weights_digest(registry.resolve(model)),
        "candidates": {
            name: registry.weights_digest(Path(folder)) for name, folder in candidates.items()
        },
        "calibration": [calibration.model_dump(), corpora.digest(calibration.texts)],
        "evaluation": [evaluation.model_dump(), corpora.digest(evaluation.texts)],
        "rounds": asked.rounds,
        "threads": asked.threads or threads(),
    }

    def make(folder: Path) -> None:
        opened = registry.open_model(model)
        sample = corpora.evaluation_sentences(evaluation.texts, evaluation.sentences)[0]
        lengths = [
            length for length in serving_benchmark.LENGTHS if length <= opened.max_seq_length
        ]
        given = {length: of_length(opened, sample, length, COUNT) for length in lengths}
        rows = serving_benchmark.measure(
            serving_benchmark.Asked(model, key["threads"], given), candidates, asked.rounds
        )
        write_json(folder / "rows.json", rows)
        write_json(
            folder / "vectors.json",
            _vectors(opened, calibration, evaluation)
            if families.of_opened(opened) is families.encoder
            else [],
        )

    cards = [manifest.verify(Path(folder)) for folder in candidates.values()]
    also = {name for card in cards if "backend" in card for name in modules(card["backend"])}
    return artifact("resources", key, make, also=sorted(also))


def _vectors(opened, calibration: Calibration, evaluation: Evaluation) -> list[dict]:
    from kerf.profiling import vector_quantization

    queries, passages, documents = corpora.cloze_pairs(evaluation.passages)
    seen = corpora.calibration_sentences(calibration.texts, calibration.samples, calibration.seed)
    return vector_quantization.measure(
        *(
            opened.encode(each, normalize_embeddings=True, show_progress_bar=False)
            for each in (queries, passages, seen)
        ),
        np.array(documents),
    )


def of_length(opened, sentences: list[str], tokens: int, count: int) -> list:
    """`count` different texts of so many tokens, special ones included, cut from real sentences one after another.

    For a reranker: pairs of them, a quarter of the words the query.
    """
    words, joint, _ = segmentation.units(" ".join(sentences))
    found, start = [], 0
    for _ in range(count):
        stop = start + 2
        while (
            stop < min(start + tokens, len(words))
            and _tokens(opened, words[start : stop + 1], joint) <= tokens
        ):
            stop += 1
        found.append(_text(opened, words[start:stop], joint))
        start = stop if stop + tokens < len(words) else 0
    return found


def _text(opened, words: list[str], joint: str):
    if not hasattr(opened, "predict"):
        return joint.join(words)
    cut = max(1, len(words) // 4)
    return joint.join(words[:cut]), joint.join(words[cut:])


def _tokens(opened, words: list[str], joint: str) -> int:
    text = _text(opened, words, joint)
    return len(
        opened.tokenizer(*([text] if isinstance(text, str) else text), verbose=False)["input_ids"]
    )


def read(folder: Path) -> tuple[list[dict], list[dict]]:
    """Rows of models and of vectors."""
    return tuple(json.loads((folder / name).read_text()) for name in ("rows.json", "vectors.json"))
