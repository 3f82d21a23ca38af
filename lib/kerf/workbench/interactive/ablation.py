"""An ablation table of chains of steps: a row has the mean cosine on held-out sentences, bytes and seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kerf import pipeline
from kerf.backends.serve import Encoder
from kerf.calibration.heldout import embed
from kerf.config import Calibration
from kerf.core.cache import meta
from kerf.data import corpora
from kerf.evaluate import stats as st
from kerf.models import registry
from kerf.models.families import encoder

BATCH_SIZE, MAX_LENGTH = 32, 128
Interval = tuple[float, float | None, float | None]  # mean, low and high


class LayerAblation:
    """Candidates are compared with the float model's embeddings of evaluation sentences."""

    def __init__(self, model: str, source: corpora.Texts, sentences: int) -> None:
        """source: evaluation text, of several the first. Raises InputError when it has fewer sentences."""
        registry.check_family(model, "a mean cosine", "encoder")
        self.model = model
        sample, documents = corpora.evaluation_sentences(corpora.names_of(source)[0], sentences)
        opened = registry.open_model(model)
        order = sorted(range(len(sample)), key=lambda index: len(sample[index]))  # as in `batches`
        self.documents = np.array(documents)[order]
        self.sentences = [sample[index] for index in order]
        self.batches = encoder.tokenized(opened, sample, BATCH_SIZE, MAX_LENGTH)
        self.reference = embed(opened, self.batches)
        self.cosines: dict[str, np.ndarray] = {}  # of every sentence, by the name of the row

    def measure(self, opened: Any, name: str = "") -> Interval:
        """Mean cosine of an opened candidate and its 95 % interval over documents; stored as `name`."""
        if isinstance(opened, Encoder):  # it runs on a real kernel, not as a torch module
            rows = torch.from_numpy(
                opened.encode(self.sentences, prompt="", normalize_embeddings=True)
            )
        else:
            rows = embed(opened, self.batches)
        self.cosines[name] = (rows * self.reference).sum(1).double().numpy()
        return st.mean_interval(self.cosines[name], self.documents)

    def difference(self, before: str, after: str) -> Interval:
        """Mean change of a sentence's cosine from one row to another, and its interval over documents."""
        return st.mean_interval(self.cosines[after] - self.cosines[before], self.documents)

    def row(self, name: str, chain: list[dict], calibration: Calibration) -> dict:
        """Make or reuse the candidate of a chain; its figures, and the run that made it."""
        chains = [chain[: end + 1] for end in range(len(chain))]
        folders = [Path(pipeline.build(self.model, part, calibration)) for part in chains]
        results = [meta(folder)["result"] for folder in folders]
        bits, size = results[-1]["linear_bits"], results[-1]["bytes_on_disk"]
        mean, low, high = self.measure(registry.load(folders[-1]), name)
        figures = {"linear_bits": bits, "bytes": size, "cosine": mean, "low": low, "high": high}
        seconds = sum(result["compress_seconds"] for result in results)
        return {"name": name, **figures, "seconds": seconds, "run": meta(folders[-1])["run"]}
