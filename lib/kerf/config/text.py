"""Which text is looked at, which is measured on, and how often a service's figures are taken."""

from typing import Annotated

from pydantic import Field

from kerf.config.base import MOST, Name, Parameters, whole


class Calibration(Parameters):
    """Which text a method may look at."""

    texts: Annotated[Name, Field(description="news, wiki or a text file, one document a line")] = (
        "news"
    )
    samples: Annotated[int, whole(1, MOST)] = 256
    max_length: Annotated[int, Field(ge=4, le=8192, description="4 to 8192 tokens")] = 128
    seed: Annotated[int, whole(0, 2**32 - 1)] = 0


class Evaluation(Parameters):
    """Which text a candidate is measured on; the human-rated pairs are always all used."""

    texts: Annotated[Name, Field(description="news, wiki or a text file, one document a line")] = (
        "news"
    )
    sentences: Annotated[int, whole(2, MOST)] = 400
    passages: Annotated[int, whole(2, MOST)] = 500
    num_chunks: Annotated[int, whole(2, MOST, "; language models")] = 64
    seq_len: Annotated[
        int, Field(ge=16, le=8192, description="16 to 8192 tokens; language models")
    ] = 512
    restored: Annotated[int, Field(ge=0, le=8, description="0 to 8 chunks; language models")] = 2


class Resources(Parameters):
    """How candidates are started again and again to see what each takes."""

    rounds: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="1 to 100 fresh processes of each; fewer than 6 give no intervals",
        ),
    ] = 6
    threads: Annotated[int | None, whole(1, 1024, ", or none: all that this machine has")] = None
    memory_limit: Annotated[
        float | None,
        Field(
            gt=0,
            le=1e9,
            description="MB above 0, at most 1e9, that a recommended candidate may hold, or none",
        ),
    ] = None
