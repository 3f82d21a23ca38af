"""What the module of a backend provides. Which backend runs which method is listed in `kerf.config.backends`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kerf.config.quantize import Bfloat16, Dynamic, Static, WeightOnly

if TYPE_CHECKING:
    from torch import Tensor

    from kerf.tensors.quantized import Quantized

TOP_INPUT = 255  # largest code of an input
SMALLEST = 1e-8  # delta of a token whose inputs are all equal
KernelStep = Static | Dynamic | WeightOnly | Bfloat16

# A loaded model: keyword arguments input_ids, attention_mask and token_type_ids, int64 (texts, tokens) each, to embeddings
# or scores, float32 (texts, features). Any thread may call it.
Kernel = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Int8Linear:
    """A linear layer on an integer kernel."""

    low: Tensor | None  # (columns,); None for dynamic inputs
    delta: Tensor | None  # as low
    codes: Tensor  # int8 (rows, columns)
    scale: Tensor  # (rows,)
    bias: Tensor  # (rows,), for inputs in their own units
    error: float  # squared error of the output over the squared output, on calibration text

    def weight(self) -> Tensor:
        """float32 (rows, columns), for inputs in their own units."""
        return self.codes.float() * self.scale[:, None] / (1 if self.delta is None else self.delta)


IntegerLayers = Mapping[str, Int8Linear]  # by name
PackedLayers = Mapping[str, "Quantized"]


class BackendModule(Protocol):
    """A library that computes in INT8, INT4 or bfloat16. A `graph` is whatever its `convert` returns.

    convert: a SentenceTransformer or CrossEncoder as a float32 graph; raises InputError for a model it cannot read.
    weights: the linear layers and word embeddings of the graph, by name. put_integers, put_packed: replace these weights
    in place, by integer kernels or by packed codes. settings: the options of a step in the library's own words, which
    `run` reads from the manifest. save: write the graph, with float weights as float16 if `half`. run: load the model of a
    candidate with this manifest; raises InputError where the library cannot.
    """

    MODEL: str  # name of the file that `save` writes
    INSTALL: str  # the command that installs the library, if it is not `available`

    def available(self) -> bool: ...
    def convert(self, opened: Any) -> Any: ...
    def weights(self, graph: Any) -> Collection[str]: ...
    def put_integers(self, graph: Any, layers: IntegerLayers) -> None: ...
    def put_packed(self, graph: Any, layers: PackedLayers) -> None: ...
    def settings(self, step: KernelStep) -> dict[str, str]: ...
    def save(self, graph: Any, folder: Path, half: bool) -> None: ...
    def run(self, folder: Path, card: dict, threads: int) -> Kernel: ...
