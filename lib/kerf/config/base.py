"""The sections, the step `reconstruct` and types of keys. A field's `description` is what a refusal of its value accepts."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, model_validator

from kerf.core.errors import CONTROL, refuse

MOST = 1_000_000  # of anything that is counted: more than any text here has, and safe to multiply


class Parameters(BaseModel):
    """Base of all parameters: unknown keys and values of another type (true for 1) are errors; instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# Values of the keys that a method does not have.
NONE = ("bits", "sparsity", "pattern", "group_size", "backend", "min_cosine", "budget_bytes")
DEFAULTS: dict[str, Any] = dict.fromkeys(NONE)
DEFAULTS |= {"scope": "layer", "allocation": "uniform", "sweeps": 0, "compute_dtype": "float32"}
DEFAULTS |= {"granularity": "channel", "symmetric": True, "clip": "none", "scale_dtype": "float16"}


class StepParameters(Parameters):
    """Keys of a step."""

    def __getattr__(self, key: str) -> Any:
        if key in DEFAULTS:
            return DEFAULTS[key]
        raise AttributeError(f"{type(self).__name__} has no key {key}")

    def nm_pattern(self) -> tuple[int, int] | None:
        """(N, M) of the pattern: N of every M weights stay."""
        if not self.pattern:
            return None
        stay, of = map(int, self.pattern.split(":"))
        return stay, of

    @classmethod
    def implied(cls, values: dict) -> dict:
        """The values of keys with those that follow from them. The sparsity of a pattern is 1 - N / M."""
        pattern = values.get("pattern")
        if not isinstance(pattern, str):
            return values
        match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", pattern)
        if not match or int(match[1]) >= int(match[2]):
            raise refuse("pattern", pattern, "N:M, as in 2:4, with N below M")
        share = 1 - int(match[1]) / int(match[2])
        if values.get("sparsity") not in (None, share):
            raise refuse(
                "sparsity", values["sparsity"], f"{share:g}, which the pattern says, or none"
            )
        return {**values, "sparsity": share}

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, values: Any) -> Any:
        return cls.implied(values) if isinstance(values, dict) else values


def accepts(description: str, **limits: Any) -> Any:
    """Field with the text that a refusal shows and pydantic's limits (ge, gt, le, lt)."""
    return Field(description=description, **limits)


def whole(least: int, most: int, about: str = "") -> Any:
    """Field of a whole number from `least` to `most`; `about` is appended to what a refusal shows."""
    return accepts(f"a whole number from {least} to {most}{about}", ge=least, le=most)


def _check_name(text: str) -> str:
    if CONTROL.search(text) or not text.strip():
        raise ValueError
    return text


Name = Annotated[str, Field(max_length=4096), AfterValidator(_check_name)]  # of a file or a model
Bits = Annotated[
    Annotated[int, Field(ge=2, le=8)] | Annotated[float, Field(ge=1.6, le=1.6)],
    accepts("a whole number from 2 to 8, or 1.6 (ternary)"),  # 1.6: five ternary codes in a byte
]
Sparsity = Annotated[float, accepts("a share between 0 and 1, both apart", gt=0, lt=1)]
Pattern = Annotated[str | None, accepts("N:M, as in 2:4, with N below M; it decides the sparsity")]
Sweeps = Annotated[int, whole(0, 20)]
Flag = Annotated[StrictBool, accepts("true or false")]
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
