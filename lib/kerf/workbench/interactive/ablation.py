"""An ablation table of chains of steps: mean cosine on sentences that no method saw, bytes and seconds, in one row."""

from pathlib import Path

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

BATCH_SIZE = 32


class LayerAblation:
    """The float model's embeddings of evaluation sentences, to hold candidates against."""

    def __init__(self, model: str, source: str, sentences: int, max_length: int = 128) -> None:
        """source: evaluation text (news, wiki or a file). Raises InputError when it has fewer sentences."""
        registry.check_kind(model, "a mean cosine", "encoder")
        self.model = model
        sample, documents = corpora.evaluation_sentences(source, sentences)
        self.documents = np.array(documents)
        opened = registry.open_model(model)
        order = sorted(
            range(len(sample)), key=lambda index: len(sample[index])
        )  # as `batches` will have them
        self.documents = self.documents[order]
        self.sentences = [sample[index] for index in order]
        self.batches = encoder.tokenized(opened, sample, BATCH_SIZE, max_length)
        self.aim = embed(opened, self.batches)
        self.cosines: dict[str, np.ndarray] = {}  # of every row, by its name

    def measure(self, opened, name: str = "") -> tuple[float, float, float]:
        """Mean cosine of an opened candidate and its 95 % interval over documents; remembered as `name`."""
        real = isinstance(opened, Encoder)  # a real kernel: there is no network to look into
        rows = (
            torch.from_numpy(opened.encode(self.sentences, normalize_embeddings=True))
            if real
            else embed(opened, self.batches)
        )
        self.cosines[name] = (rows * self.aim).sum(1).double().numpy()
        return st.mean_interval(self.cosines[name], self.documents)

    def difference(self, before: str, after: str) -> tuple[float, float, float]:
        """Mean change of the cosine of a sentence from one row to another, and its interval over documents."""
        return st.mean_interval(self.cosines[after] - self.cosines[before], self.documents)

    def row(self, name: str, chain: list[dict], calibration: Calibration) -> dict:
        """Make or reuse the candidate of a chain; what it costs and keeps, and the run that made it."""
        folder = Path(pipeline.build(self.model, chain, calibration))
        links = [
            Path(pipeline.build(self.model, chain[:n], calibration))
            for n in range(1, len(chain) + 1)
        ]
        made, (mean, low, high) = meta(folder)["result"], self.measure(registry.load(folder), name)
        return {
            "name": name,
            "linear_bits": made["linear_bits"],
            "bytes": made["bytes_on_disk"],
            "cosine": mean,
            "low": low,
            "high": high,
            "seconds": sum(meta(link)["result"]["compress_seconds"] for link in links),
            "run": meta(folder)["run"],
        }
