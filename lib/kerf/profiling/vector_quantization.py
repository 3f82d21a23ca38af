"""Quantized embeddings: bytes, recall of the ten nearest neighbours, and search time.

int8 and binary codes are those of sentence-transformers (`quantize_embeddings`), with ranges from calibration text. Search
is exhaustive; with rescoring it sorts OVERSAMPLING times as many results by the float query against dequantized vectors.
"""

from functools import partial
from timeit import repeat
from typing import Any, Literal

import numpy as np
from numpy import ndarray

from kerf.evaluate import stats as st

Precision = Literal["float32", "int8", "ubinary"]
PRECISIONS: tuple[Precision, ...] = ("float32", "int8", "ubinary")
NEAREST, OVERSAMPLING = 10, 4


def measure(
    queries: ndarray, corpus: ndarray, calibration: ndarray, documents: ndarray, rounds: int = 7
) -> list[dict[str, Any]]:
    """Rows: precision, rescored, bytes (per million), recall, low, high, milliseconds (per query).

    queries, corpus, calibration: float32 (texts, features) of length one. documents: (queries,).
    recall: share of the ten nearest float vectors that the search finds. milliseconds: median.
    """
    exact, rows = _nearest(queries @ corpus.T, NEAREST), []
    for precision in PRECISIONS:
        codes = small(corpus, precision, calibration)
        for rescored in (False, True) if precision != "float32" else (False,):
            run = partial(search, queries, codes, precision, calibration, rescored)
            pairs = zip(run(), exact, strict=True)
            recalls = [len({*results} & {*reference}) / NEAREST for results, reference in pairs]
            recall, low, high = st.mean_interval(np.array(recalls), documents)
            milliseconds = 1000 * np.median(repeat(run, number=1, repeat=rounds)) / len(queries)
            size = codes.itemsize * codes.shape[1] * 10**6
            row = {"precision": precision, "rescored": rescored, "bytes": size, "recall": recall}
            rows.append(row | {"low": low, "high": high, "milliseconds": milliseconds})
    return rows


def small(vectors: ndarray, precision: Precision, calibration: ndarray) -> ndarray:
    """Codes: float32, int8 (texts, features) or packed signs (texts, features / 8)."""
    from sentence_transformers.util.quantization import quantize_embeddings

    ranges = np.stack([calibration.min(0), calibration.max(0)])
    return np.asarray(quantize_embeddings(vectors, precision, ranges=ranges))


def values(codes: ndarray, precision: Precision, calibration: ndarray) -> ndarray:
    """Dequantized float32 (texts, features): the middle of an int8 step, 1 or -1 for a sign."""
    if precision == "int8":
        low, high = calibration.min(0), calibration.max(0)
        return (low + (codes.astype(np.float32) + 128.5) * ((high - low) / 255)).astype(np.float32)
    if precision == "ubinary":
        return np.unpackbits(codes, axis=-1).astype(np.float32) * 2 - 1
    return codes


def search(
    queries: ndarray, codes: ndarray, precision: Precision, calibration: ndarray, rescored: bool
) -> ndarray:
    """Indices of the nearest vectors by their codes, the nearest first, (queries, NEAREST)."""
    query_codes = small(queries, precision, calibration)
    if precision == "ubinary":
        scores = -np.bitwise_count(query_codes[:, None] ^ codes[None]).sum(2, dtype=np.int32)
    else:
        old, new = (values(rows, precision, calibration) for rows in (query_codes, codes))
        scores = old @ new.T
    if not rescored:
        return _nearest(scores, NEAREST)
    nearest = _nearest(scores, min(NEAREST * OVERSAMPLING, len(codes)))
    fine = np.einsum("qf,qmf->qm", queries, values(codes[nearest], precision, calibration))
    return np.take_along_axis(nearest, _nearest(fine, NEAREST), 1)


def _nearest(scores: ndarray, count: int) -> ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]
