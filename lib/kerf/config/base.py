"""The sections, the step `reconstruct` and types of keys. A field's `description` is what a refusal of its value accepts."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    model_validator,
)

from kerf.core.errors import CONTROL, refuse

MOST = 1_000_000  # of anything that is counted: more than any text here has, and safe to multiply


MOST_UNITS = 5000  # of what intervals resample, whose weights take memory by the square


class Parameters(BaseModel):
    """Base of all parameters: unknown keys and values of another type (true for 1) are errors; instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# Values of the keys that a method does not have.
NONE = ("bits", "sparsity", "pattern", "group_size", "backend", "min_cosine", "budget_bytes")
DEFAULTS: dict[str, Any] = dict.fromkeys(NONE)
DEFAULTS |= {"scope": "layer", "allocation": "uniform", "sweeps": 0, "compute_dtype": "float32"}
DEFAULTS |= {"granularity": "channel", "symmetric": True, "clip": "none", "scale_dtype": "float16"}


def accepts(description: str, **limits: Any) -> Any:
    """Field with the text that a refusal shows and pydantic's limits (ge, gt, le, lt)."""
    return Field(description=description, **limits)


Flag = Annotated[StrictBool, accepts("true or false")]


PARTIAL = "true or false: go on where under 95 % of the parameters in matrices would be changed"


class StepParameters(Parameters):
    """Keys of a step."""

    allow_partial: Annotated[StrictBool, accepts(PARTIAL)] = False

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


def whole(least: int, most: int, about: str = "") -> Any:
    """Field of a whole number from `least` to `most`; `about` is appended to what a refusal shows."""
    return accepts(f"a whole number from {least} to {most}{about}", ge=least, le=most)


def _check_name(text: str) -> str:
    if CONTROL.search(text) or not text.strip():
        raise ValueError
    return text


def _as_tuple(names: Any) -> Any:
    return tuple(names) if isinstance(names, list) else names


Name = Annotated[str, Field(max_length=4096), AfterValidator(_check_name)]  # of a file or a model
Bits = Annotated[
    Annotated[int, Field(ge=2, le=8)] | Annotated[float, Field(ge=1.6, le=1.6)],
    accepts("a whole number from 2 to 8, or 1.6 (ternary)"),  # 1.6: five ternary codes in a byte
]
Sparsity = Annotated[float, accepts("a share between 0 and 1, both apart", gt=0, lt=1)]
Pattern = Annotated[str | None, accepts("N:M, as in 2:4, with N below M; it decides the sparsity")]
Sweeps = Annotated[int, whole(0, 20)]
Shrinkage = Annotated[
    Literal["auto"] | Annotated[float, Field(ge=0, lt=1)],
    accepts("a share from 0 to below 1, or auto"),
]
Names = Annotated[tuple[Name, ...], BeforeValidator(_as_tuple), Field(max_length=16)]
TASKS = "a list of piqa, siqa, commonsenseqa, openbookqa and mmlu; language models"
SOURCES = (
    "news, wiki, questions, docs, everyday, bbc, or FILE[::COLUMN][@FAMILY]: text with a document a line, JSONL, CSV, TSV, "
    "Parquet or a folder saved by datasets; or a list"
)
BEIR = "a list of questions, docs and folders in BEIR's format; encoders"
TABLES = "a list of bbc and tables with text and label, or an empty one; encoders"
PAIRS = "a list of tables with two texts and a score, besides the bundled pairs; encoders"
Texts = Annotated[Name | Annotated[Names, Field(min_length=1)], accepts(SOURCES)]


class Calibration(Parameters):
    """The text that a method may look at; several sources have equal shares."""

    texts: Texts = ("questions", "news")
    samples: Annotated[int, whole(1, MOST)] = 256
    max_length: Annotated[int, accepts("4 to 8192 tokens", ge=4, le=8192)] = 128
    seed: Annotated[int, whole(0, 2**32 - 1)] = 0
    draws: Annotated[int, whole(1, 20, ", each candidate from so many samples")] = 1

    def of_draw(self, draw: int) -> "Calibration":
        """The parameters of another sample, or for 0 of the first one."""
        return self.model_copy(update={"seed": (self.seed + draw) % 2**32, "draws": 1})

    def key(self) -> dict:
        """What one sample depends on."""
        return self.model_dump(mode="json", exclude={"draws"})


class Evaluation(Parameters):
    """The text that a candidate is measured on, each source by itself; all human-rated pairs are always used."""

    texts: Texts = ("news", "questions", "docs", "everyday")
    same_domain: Flag = False  # whether calibration may have seen the family of every source
    sentences: Annotated[int, whole(2, MOST_UNITS)] = 200
    retrieval: Annotated[Names, accepts(BEIR)] = ("questions", "docs")
    queries: Annotated[int, whole(2, MOST_UNITS, "; encoders, rerankers")] = 1500
    passages: Annotated[int, whole(2, MOST)] = 200
    corpus: Annotated[int, whole(2, MOST, " passages of a folder, those judged apart")] = 5000
    similarity: Annotated[Names, accepts(PAIRS)] = ()
    classification: Annotated[Names, accepts(TABLES)] = ("bbc",)
    labelled: Annotated[int, whole(20, MOST_UNITS, ", to fit and again to score; encoders")] = 300
    num_chunks: Annotated[int, whole(2, MOST, " of each source; language models")] = 16
    seq_len: Annotated[int, accepts("16 to 8192 tokens; language models", ge=16, le=8192)] = 512
    tasks: Annotated[Names, accepts(TASKS)] = (
        "piqa",
        "siqa",
        "commonsenseqa",
        "openbookqa",
        "mmlu",
    )
    items: Annotated[int, whole(10, MOST_UNITS, " of each task; language models")] = 50
    restored: Annotated[int, accepts("0 to 8 chunks; language models", ge=0, le=8)] = 2


Prompt = Annotated[str | None, accepts("text of at most 4096 characters", max_length=4096)]
Family = Annotated[str | None, accepts("encoder, causal or reranker")]


class Conventions(Parameters):
    """What the model's own files do not say: text that an encoder reads before a query and before a passage, and its family."""

    query_prompt: Prompt = None
    passage_prompt: Prompt = None
    family: Family = None


TEXT_KEYS = ("texts", "retrieval", "similarity", "classification")  # that name sources of text
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
