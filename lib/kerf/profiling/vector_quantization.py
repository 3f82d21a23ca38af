"""Vectors made small: bytes of a million of them, how much of the exact ten nearest a search still finds, and its time.

int8 and binary are those of sentence-transformers (`quantize_embeddings`), ranges from vectors of calibration text.
A search of small vectors is exhaustive; with rescoring it fetches RESCORED times as many as are asked, and puts them
in order by the float query against what the small vectors stand for. Times are of this plain search in numpy, which has
no kernels for bytes: an index of int8 vectors in a database is another program.
"""

import time

import numpy as np

from kerf.evaluate import stats as st

PRECISIONS, NEAREST, RESCORED = ("float32", "int8", "ubinary"), 10, 4


def measure(
    queries: np.ndarray,
    corpus: np.ndarray,
    calibration: np.ndarray,
    documents: np.ndarray,
    rounds: int = 7,
) -> list[dict]:
    """Rows of precision, rescored, bytes (of a million), recall with low and high, milliseconds (a query; median).

    queries, corpus, calibration: float32 (texts, features), rows of length one; documents: of the queries, drawn whole.
    recall: share of the ten nearest by float vectors that are found.
    """
    exact = _nearest(queries @ corpus.T, NEAREST)
    rows = []
    for precision in PRECISIONS:
        for rescored in (False, True) if precision != "float32" else (False,):
            kept = small(corpus, precision, calibration)
            found = search(queries, kept, precision, calibration, rescored)
            shares = np.array(
                [len({*one} & {*other}) / NEAREST for one, other in zip(found, exact, strict=True)]
            )
            recall, low, high = st.mean_interval(shares, documents)
            seconds = np.median(
                [_seconds(queries, kept, precision, calibration, rescored) for _ in range(rounds)]
            )
            rows.append(
                {
                    "precision": precision,
                    "rescored": rescored,
                    "bytes": kept.itemsize * kept.shape[1] * 10**6,
                    "recall": recall,
                    "low": low,
                    "high": high,
                    "milliseconds": 1000 * seconds / len(queries),
                }
            )
    return rows


def small(vectors: np.ndarray, precision: str, calibration: np.ndarray) -> np.ndarray:
    """Vectors in a precision: float32, int8 (texts, features) or packed signs (texts, features / 8)."""
    from sentence_transformers.util.quantization import quantize_embeddings

    return quantize_embeddings(vectors, precision, ranges=_ranges(calibration))


def _ranges(calibration: np.ndarray) -> np.ndarray:
    """Least and greatest value of every feature, (2, features)."""
    return np.stack([calibration.min(0), calibration.max(0)])


def values(kept: np.ndarray, precision: str, calibration: np.ndarray) -> np.ndarray:
    """float32 (texts, features) that small vectors stand for: the middle of an int8 step, 1 or -1 for a sign."""
    if precision == "int8":
        low, high = _ranges(calibration)
        return (low + (kept.astype(np.float32) + 128.5) * ((high - low) / 255)).astype(np.float32)
    return (
        np.unpackbits(kept, axis=-1).astype(np.float32) * 2 - 1 if precision == "ubinary" else kept
    )


def search(
    queries: np.ndarray, kept: np.ndarray, precision: str, calibration: np.ndarray, rescored: bool
) -> np.ndarray:
    """Places of the nearest of `kept`, the nearest first, (queries, NEAREST)."""
    asked = small(queries, precision, calibration)
    if precision == "ubinary":
        scores = -np.bitwise_count(asked[:, None] ^ kept[None]).sum(2, dtype=np.int32)
    else:
        scores = values(asked, precision, calibration) @ values(kept, precision, calibration).T
    if not rescored:
        return _nearest(scores, NEAREST)
    places = _nearest(scores, min(NEAREST * RESCORED, len(kept)))
    fine = np.einsum("qf,qmf->qm", queries, values(kept[places], precision, calibration))
    return np.take_along_axis(places, _nearest(fine, NEAREST), 1)


def _nearest(scores: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _seconds(*asked) -> float:
    clock = time.perf_counter()
    search(*asked)
    return time.perf_counter() - clock
