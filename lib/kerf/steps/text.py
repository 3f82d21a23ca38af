"""Which text is looked at, and which is measured on."""

from typing import Annotated

from pydantic import Field

from kerf.steps.base import Parameters


class Calibration(Parameters):
    """Which text a method may look at."""

    texts: Annotated[str, Field(description="news, wiki or a text file, one document a line")] = "news"
    samples: Annotated[int, Field(strict=True, ge=1, description="a whole number from 1")] = 256
    max_length: Annotated[int, Field(strict=True, ge=4, le=8192, description="4 to 8192 tokens")] = 128
    seed: Annotated[int, Field(strict=True, ge=0, description="a whole number from 0")] = 0


class Evaluation(Parameters):
    """Which text a candidate is measured on; the human-rated pairs are always all used."""

    texts: Annotated[str, Field(description="news, wiki or a text file, one document a line")] = "news"
    sentences: Annotated[int, Field(strict=True, ge=2, description="a whole number from 2")] = 400
    passages: Annotated[int, Field(strict=True, ge=2, description="a whole number from 2")] = 500
    contexts: Annotated[int, Field(strict=True, ge=2, description="a whole number from 2; language models")] = 64
    context: Annotated[int, Field(strict=True, ge=16, le=8192, description="16 to 8192 tokens; language models")] = 512
    restored: Annotated[int, Field(strict=True, ge=0, le=8, description="0 to 8 contexts; language models")] = 2
