"""Keys of the sections `calibration`, `evaluation` and `resources`, and of the step `reconstruct`."""

from typing import Annotated

from kerf.config.base import MOST, Name, Parameters, accepts, whole

Texts = Annotated[Name, accepts("news, wiki or a text file, one document a line")]


class Calibration(Parameters):
    """The text that a method may look at."""

    texts: Texts = "news"
    samples: Annotated[int, whole(1, MOST)] = 256
    max_length: Annotated[int, accepts("4 to 8192 tokens", ge=4, le=8192)] = 128
    seed: Annotated[int, whole(0, 2**32 - 1)] = 0


class Evaluation(Parameters):
    """The text that a candidate is measured on; all human-rated pairs are always used."""

    texts: Texts = "news"
    sentences: Annotated[int, whole(2, MOST)] = 400
    passages: Annotated[int, whole(2, MOST)] = 500
    num_chunks: Annotated[int, whole(2, MOST, "; language models")] = 64
    seq_len: Annotated[int, accepts("16 to 8192 tokens; language models", ge=16, le=8192)] = 512
    restored: Annotated[int, accepts("0 to 8 chunks; language models", ge=0, le=8)] = 2


ROUNDS = "1 to 100 fresh processes of each; fewer than 6 give no intervals"
MEMORY_LIMIT = "MB above 0, at most 1e9, that a recommended candidate may hold, or none"


class Resources(Parameters):
    """How often models are started in fresh processes to measure them as a service, and their limits."""

    rounds: Annotated[int, accepts(ROUNDS, ge=1, le=100)] = 6
    threads: Annotated[int | None, whole(1, 1024, ", or none: all that this machine has")] = None
    memory_limit: Annotated[float | None, accepts(MEMORY_LIMIT, gt=0, le=1e9)] = None


class Reconstruct(Parameters):
    """Keys of a `reconstruct` step."""

    steps: Annotated[int, whole(1, MOST)] = 400
    joint_steps: Annotated[int, whole(0, MOST, " (0: none)")] = 500
    minutes: Annotated[float, accepts("more than 0, at most 1440 minutes", gt=0, le=1440)] = 9.0
    augmentation_factor: Annotated[int, whole(1, 100)] = 8
