"""A calibration sample as batches that know which of its text sources they are of."""

from collections.abc import Callable

from kerf.config import Calibration
from kerf.data import corpora


class Batch(dict):
    """Inputs of a network by name. source: number of the text source that the batch is of."""

    source = 0


def by_source(spec: Calibration, make: Callable[[Calibration], list[dict]]) -> list[dict]:
    """Batches that `make` returns for each source's share of the sample; no batch is of two sources."""
    found: list[dict] = []
    for number, (name, share) in enumerate(corpora.shares(spec.texts, spec.samples)):
        own = spec.model_copy(update={"texts": name, "samples": share})
        for tensors in make(own) if share else []:
            batch = Batch(tensors)
            batch.source = number
            found.append(batch)
    return found
