"""What all typed parameters share. Every field says in `description` what it accepts; that text is what a refusal shows."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from kerf.core.errors import CONTROL, refuse

MOST = (
    1_000_000  # of whatever is counted: more than any text here has, little enough to be multiplied
)


class Parameters(BaseModel):
    """Base: unknown keys are errors, a value of another type (true for 1) too, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _plain(text: str) -> str:
    if CONTROL.search(text) or not text.strip():
        raise ValueError
    return text


Name = Annotated[str, Field(max_length=4096), AfterValidator(_plain)]  # of a file or a model


def whole(least: int, most: int, about: str = ""):
    """Field of a whole number from `least` to `most`; `about` is what a refusal says after that."""
    return Field(ge=least, le=most, description=f"a whole number from {least} to {most}{about}")


def _width(bits: object) -> object:
    """2 to 8, or 1.6: five ternary codes in a byte; 16 is method bfloat16's alone."""
    if isinstance(bits, bool) or not (
        bits == 1.6 or isinstance(bits, int) and (2 <= bits <= 8 or bits == 16)
    ):
        raise ValueError
    return bits


Bits = Annotated[
    int | float,
    BeforeValidator(_width),
    Field(description="a whole number from 2 to 8, or 1.6 (ternary)"),
]


def of_pattern(values):
    """Values of a step with the sparsity that its pattern says."""
    if isinstance(values, dict) and isinstance(values.get("pattern"), str):
        found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", values["pattern"])
        if not found or int(found[1]) >= int(found[2]):
            raise refuse("pattern", values["pattern"], "N:M, as in 2:4, with N below M")
        share = 1 - int(found[1]) / int(found[2])
        if values.get("sparsity") not in (None, share):
            raise refuse(
                "sparsity", values["sparsity"], f"{share:g}, which the pattern says, or none"
            )
        values = {**values, "sparsity": share}
    return values


def nm_pattern(self) -> tuple[int, int] | None:
    """(N, M) of the pattern: N kept of every M."""
    return tuple(map(int, self.pattern.split(":"))) if self.pattern else None


Sparsity = Annotated[float, Field(gt=0, lt=1, description="a share between 0 and 1, both apart")]
Pattern = Annotated[
    str | None, Field(description="N:M, as in 2:4, with N below M; it decides the sparsity")
]
Sweeps = Annotated[int, whole(0, 20)]
Flag = Annotated[StrictBool, Field(description="true or false")]
