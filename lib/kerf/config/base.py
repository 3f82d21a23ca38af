"""Types that all parameters share. A field's `description` is what a refusal of its value shows as accepted."""

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
            accepted = f"{share:g}, which the pattern says, or none"
            raise refuse("sparsity", values["sparsity"], accepted)
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
