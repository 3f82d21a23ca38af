"""Candidates as services: serving benchmark and cost of quantized embeddings, in one artifact."""

import json
from pathlib import Path
from typing import Any

from kerf.config import Calibration, Evaluation, Resources
from kerf.config.backends import modules
from kerf.core.atomic import write_json
from kerf.core.cache import artifact, threads
from kerf.data import corpora, datasets, segmentation
from kerf.evaluate.common import text_digest
from kerf.models import families, manifest, registry
from kerf.profiling import serving_benchmark, vector_quantization

COUNT = max(serving_benchmark.BATCHES)  # texts of each length


def measure(
    model: str,
    candidates: dict[str, Path],
    calibration: Calibration,
    evaluation: Evaluation,
    asked: Resources,
) -> Path:
    """Artifact of rows.json (`serving_benchmark`) and vectors.json (`vector_quantization`).

    candidates: directory by name. Raises InputError for a model that is neither an encoder nor a
    reranker, RuntimeError when a process of the baseline dies.
    """
    registry.check_family(model, "resources", "encoder", "reranker")
    digests = {name: registry.weights_digest(Path(path)) for name, path in candidates.items()}
    count = asked.threads or threads()
    key = {
        "model": registry.weights_digest(registry.resolve(model)),
        "candidates": digests,
        "calibration": [calibration.key(), corpora.digest(calibration.texts)],
        "evaluation": [evaluation.model_dump(), text_digest(evaluation)],
        "rounds": asked.rounds,
        "threads": count,
    }

    def make(folder: Path) -> None:
        opened = registry.open_model(model)
        sentences = corpora.evaluation_sentences(
            corpora.names_of(evaluation.texts)[0], evaluation.sentences
        )[0]
        lengths = [size for size in serving_benchmark.LENGTHS if size <= opened.max_seq_length]
        texts = {length: of_length(opened, sentences, length, COUNT) for length in lengths}
        rows = serving_benchmark.measure(model, count, texts, candidates, asked.rounds)
        write_json(folder / "rows.json", rows)
        is_encoder = families.of_opened(opened) is families.encoder
        vectors = _vectors(opened, calibration, evaluation) if is_encoder else []
        write_json(folder / "vectors.json", vectors)

    backends = [manifest.verify(Path(path)).get("backend") for path in candidates.values()]
    code = {name for backend in backends if backend for name in modules(backend)}
    return artifact("resources", key, make, also=sorted(code))


def _vectors(opened: Any, calibration: Calibration, evaluation: Evaluation) -> list[dict]:
    pairs = datasets.retrieval("wiki", evaluation.passages)
    seen = corpora.calibration_sentences(calibration.texts, calibration.samples, calibration.seed)
    options = {"normalize_embeddings": True, "show_progress_bar": False}
    embeddings = (
        families.encoder.encode_queries(opened, pairs.queries, **options),
        families.encoder.encode_documents(opened, pairs.passages, **options),
        families.encoder.encode_documents(opened, seen, **options),
    )
    return vector_quantization.measure(*embeddings, pairs.documents)


def of_length(opened: Any, sentences: list[str], tokens: int, count: int) -> list:
    """`count` different texts of so many tokens, special ones included, cut from the sentences.

    For a reranker: pairs (query, passage), with a quarter of the words in the query.
    """
    words, joint, _ = segmentation.units(" ".join(sentences))
    reader = families.of_opened(opened).reader(opened)
    texts, start = [], 0
    for _ in range(count):
        stop, end = start + 2, min(start + tokens, len(words))
        while (
            stop < end and _tokens(reader, _text(opened, words[start : stop + 1], joint)) <= tokens
        ):
            stop += 1
        texts.append(_text(opened, words[start:stop], joint))
        start = stop if stop + tokens < len(words) else 0
    return texts


def _text(opened: Any, words: list[str], joint: str) -> str | tuple[str, str]:
    if not hasattr(opened, "predict"):
        return joint.join(words)
    cut = max(1, len(words) // 4)
    return joint.join(words[:cut]), joint.join(words[cut:])


def _tokens(reader: Any, text: str | tuple[str, str]) -> int:
    texts = [text] if isinstance(text, str) else text
    return len(reader(*texts, verbose=False)["input_ids"])


def read(folder: Path) -> tuple[list[dict], list[dict]]:
    """Rows of models and of vectors."""
    rows, vectors = (folder / name for name in ("rows.json", "vectors.json"))
    return json.loads(rows.read_text()), json.loads(vectors.read_text())
