"""What a family of models provides: one module a family, in the registry `kerf.models.families.FAMILIES`."""

from pathlib import Path
from typing import Any, Protocol

from kerf.config import Calibration


class Family(Protocol):
    """A module with these names. An opened model is what `open_folder` returns, a spec which calibration text to use."""

    NAME: str  # in the registry, and a model's `kind` in results.json
    CALLED: str  # in messages, with an article: "a reranker"
    READS: tuple[str, ...]  # keys of `evaluation` that measuring it reads
    EVALUATION: str  # module that measures it
    EXAMPLES: tuple[str, ...]  # texts for `output`: a pair, or a prompt

    def takes(self, architecture: str, folder: Path) -> bool:
        """Whether the model in `folder` is of this family; architecture: the class that its configuration names."""

    def opens_as(self, opened: Any) -> bool:
        """Whether an opened model is of this family."""

    def open_folder(self, folder: Path, device: str = "cpu") -> Any:
        """The model in float32 on `device`, ready to use. Raises InputError for one that does not open."""

    def with_weights(self, folder: Path, class_name: str, weights: dict, device: str) -> Any:
        """The model of `folder` with a network of `class_name` and `weights` (tensors by name) instead of its own."""

    def network(self, opened: Any) -> Any:
        """The network of transformers whose layers are compressed."""

    def inputs(self, opened: Any) -> list[str]:
        """Names of the tensors of a tokenized batch that the network takes."""

    def forward(self, opened: Any, batch: dict) -> Any:
        """Output of the model, float32, for a tokenized batch: embeddings (texts, features), scores (pairs, 1) or logits."""

    def batches(self, opened: Any, spec: Calibration) -> list[dict]:
        """The calibration sample as arguments of the network, on its device. Raises InputError for too little or too long text."""

    def held_batches(self, opened: Any, spec: Calibration) -> list[dict]:
        """The same for text outside the sample. Raises InputError where there is none."""

    def check_held_back(self, folder: Path, spec: Calibration) -> None:
        """Refuse a sample that leaves no text to hold back."""

    def sample_texts(self, folder: Path, spec: Calibration) -> list[str]:
        """The calibration text, to be compared with the evaluation text. Raises InputError as `batches` does."""

    def describe_sample(self, folder: Path, spec: Calibration) -> str:
        """The calibration sample in a line for a reader."""

    def reader(self, opened: Any) -> Any:
        """The tokenizer, for `output` and `output_diff`."""

    def output(self, opened: Any, reader: Any, texts: tuple[str, ...]) -> Any:
        """The model's output (on the CPU) for texts such as EXAMPLES. Raises InputError for a text without a token."""

    def output_diff(self, reader: Any, before: Any, after: Any) -> list[tuple[str, float, float]]:
        """How two outputs differ, in rows: label, value before, value after."""
