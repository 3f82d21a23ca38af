"""The families of models. What differs between them is in one module a family, with the names of `Family`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from kerf.config import Calibration
from kerf.core.registry import Registry
from kerf.models.families import causal, cross_encoder, detection, encoder

Row = tuple[str, float, float]  # of a comparison of two outputs: label, value before, value after


class Family(Protocol):
    """A module with these names. An opened model is what `open_folder` returns, a spec which calibration text to use. What refuses
    its arguments raises InputError."""

    NAME: str  # in the registry, and a model's `kind` in results.json
    CALLED: str  # in messages, with an article: "a reranker"
    READS: tuple[str, ...]  # keys of `evaluation` that measuring it reads
    EVALUATION: str  # module that measures it
    EXAMPLES: tuple[str, ...]  # texts for `output`: a pair, or a prompt

    # Whether the model in `folder` is of this family; architecture: the class that its configuration names.
    def takes(self, architecture: str, folder: Path) -> bool: ...
    # Whether it can be opened as one of this family, where the user says so.
    def can_take(self, architecture: str, folder: Path) -> bool: ...
    def opens_as(self, opened: Any) -> bool: ...  # whether an opened model is of this family
    # The model in float32 on `device`, ready to use; refuses one that does not open.
    def open_folder(self, folder: Path, device: str = "cpu") -> Any: ...
    # The model of `folder` with a network of `class_name` and `weights` (tensors by name) instead of its own.
    def with_weights(self, folder: Path, class_name: str, weights: dict, device: str) -> Any: ...
    def network(self, opened: Any) -> Any: ...  # of transformers, whose layers are compressed
    def conventions(
        self, opened: Any
    ) -> dict[str, Any]: ...  # how it is used: prompts, pooling, ...
    def inputs(self, opened: Any) -> list[str]: ...  # tensors of a batch that the network takes
    # Output of the model, float32, for a tokenized batch: embeddings (texts, features), scores (pairs, 1) or logits.
    def forward(self, opened: Any, batch: dict) -> Any: ...
    # The calibration sample as arguments of the network, on its device; refuses too little or too long text.
    def batches(self, opened: Any, spec: Calibration) -> list[dict]: ...
    # The same for text outside the sample; refuses a sample that leaves none.
    def held_batches(self, opened: Any, spec: Calibration) -> list[dict]: ...
    def check_held_back(self, folder: Path, spec: Calibration) -> None: ...  # refuses the same
    # The calibration text, to be compared with the evaluation text; refuses what `batches` refuses.
    def sample_texts(self, folder: Path, spec: Calibration) -> list[str]: ...
    def describe_sample(self, folder: Path, spec: Calibration) -> str: ...  # in a line for a reader
    # Token ids of texts as the opened model reads them, special tokens and prompts included; it may run on a real kernel.
    def read_ids(self, opened: Any, texts: list[str]) -> list[list[int]]: ...
    def reader(self, opened: Any) -> Any: ...  # the tokenizer, for `output` and `output_diff`
    # The model's output (on the CPU) for texts such as EXAMPLES; refuses a text without a token.
    def output(self, opened: Any, reader: Any, texts: tuple[str, ...]) -> Any: ...
    def output_diff(self, reader: Any, before: Any, after: Any) -> list[Row]: ...


_OWN: tuple[Family, ...] = (encoder, causal, cross_encoder)  # which mypy compares with the protocol
FAMILIES = Registry("kerf.families", *_OWN)


def name_of(folder: Path) -> str:
    """Name of the family of the model in `folder`, by its configuration."""
    return of(folder).NAME


def of(folder: Path) -> Family:
    """The family of the model in `folder`."""
    name = detection.architecture(folder)
    return _last(lambda family: family.takes(name, folder))


def possible(folder: Path) -> list[str]:
    """Names of the families that the model in `folder` can be opened as."""
    name = detection.architecture(folder)
    return [family.NAME for family in FAMILIES.values() if family.can_take(name, folder)]


def of_opened(opened: Any) -> Family:
    """The family of an opened model."""
    return _last(lambda family: family.opens_as(opened))


def _last(matches: Callable[[Family], bool]) -> Family:
    """The last family in the registry that matches, since the first one, the encoders, takes every model."""
    return next(family for family in reversed(list(FAMILIES.values())) if matches(family))


def whole(opened: Any) -> Any:
    """A module from the family's `inputs`, (texts, tokens) each, to its `forward`, for what reads or runs a whole model."""
    import torch

    family = of_opened(opened)
    names = family.inputs(opened)
    opened.requires_grad_(False)  # tracing takes modules behind the network as constants

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = family.network(opened)
            # Tracers take tensors of modules alone, and those behind the transformer may have some.
            self.rest = torch.nn.ModuleList(list(opened.children())[1:])

        def forward(self, input_ids, attention_mask, token_type_ids=None):
            tensors = (input_ids, attention_mask, token_type_ids)
            return family.forward(opened, dict(zip(names, tensors, strict=False)))

    return Whole().eval()
