"""What a family of models implements to be measured, as functions of the module that it names in EVALUATION."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, runtime_checkable

from kerf.config import Evaluation
from kerf.models import families, registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler

Table: TypeAlias = "Styler"
Figures: TypeAlias = "list[tuple[Figure, str]]"  # with alternative texts


@dataclass(frozen=True)
class Comparison:
    """A candidate (a directory; empty: the baseline) against the baseline, to be written to `folder`."""

    folder: Path
    model: str
    candidate: str | Path
    spec: Evaluation
    base: Path  # artifacts of `kerf.evaluate.encode`
    other: Path


@runtime_checkable
class FamilyEvaluation(Protocol):
    """Functions that measure a family. Its `inputs` list every text in `all`.

    A family that kernels serve also has glance(before, after, source): agreement of two opened models on a few inputs.
    """

    NEEDS_BASELINE: bool  # whether inference on a candidate reads the baseline's outputs

    def gather(self, model: str, spec: Evaluation, /) -> Any: ...  # inputs; refuses too few
    def about(self, inputs: Any) -> str: ...  # one line that describes the inputs
    def documents(self, inputs: Any) -> int: ...  # number of independent documents
    # JSON for `run_inference`; other batches for the noise floor; everything: with what the baseline alone is read for.
    def inference_request(self, inputs: Any, noise_floor: bool, everything: bool) -> dict: ...
    # Write the outputs of an opened model to `folder`; returns `encode_seconds` and other timings.
    def run_inference(self, opened: Any, request: dict, folder: Path) -> dict: ...
    def latency_input(self, inputs: Any) -> Any: ...  # JSON for `predict_once`
    def predict_once(self, opened: Any, latency_input: Any, /) -> None: ...  # is timed
    # Metric rows, and data of the figures (`picture`); per-item scores go to items.parquet.
    def compare(self, comparison: Comparison, inputs: Any) -> tuple[list[dict], dict]: ...
    def draw(self, folder: Path, picture: dict) -> Figures: ...  # folder: of the comparison
    def worst(self, model: str, folder: Path, picture: dict) -> Table: ...  # most changed items
    # The result in sentences; values: metric rows by name.
    def conclusion(self, values: dict[str, dict], picture: dict) -> str: ...


def of_family(name: str) -> FamilyEvaluation:
    """The evaluation of a family."""
    return cast(FamilyEvaluation, import_module(families.FAMILIES[name].EVALUATION))


def family_evaluation(model: str) -> FamilyEvaluation:
    """The evaluation of a model's family."""
    return of_family(families.name_of(registry.resolve(model)))
