"""The first stage of retrieval: the passages that an encoder finds nearest to a query, for a reranker to put in order."""

from pathlib import Path

import numpy as np

BATCH_SIZE = 64


def others(encoder: Path, queries: list[str], passages: list[str], count: int) -> np.ndarray:
    """Numbers of the `count` passages nearest to each query, its own (of the same number) apart; (queries, count), nearest first.

    encoder: directory of a model that sentence-transformers opens; passages: more than count.
    """
    from kerf.models.families.encoder import open_folder

    opened = open_folder(encoder)
    options = {"batch_size": BATCH_SIZE, "normalize_embeddings": True, "show_progress_bar": False}
    scores = opened.encode(queries, **options) @ opened.encode(passages, **options).T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]
