"""The first stage of retrieval: an encoder that finds the passages nearest to a query, for a reranker to sort."""

from pathlib import Path
from typing import Any

import numpy as np

BATCH_SIZE = 64


def cosines(opened: Any, queries: list[str], passages: list[str]) -> np.ndarray:
    """Cosine similarity (queries, passages) by an opened encoder."""
    options = {"batch_size": BATCH_SIZE, "normalize_embeddings": True, "show_progress_bar": False}
    return opened.encode(queries, **options) @ opened.encode(passages, **options).T


def others(encoder: Path, queries: list[str], passages: list[str], count: int) -> np.ndarray:
    """Indices (queries, count) of the passages nearest to each query, nearest first, without its own (same index).

    encoder: directory of a model that sentence-transformers opens; passages: more than count.
    """
    from kerf.models.families.encoder import open_folder

    scores = cosines(open_folder(encoder), queries, passages)
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]
