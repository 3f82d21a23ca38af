"""torch's own INT8 products: the model as sentence-transformers opens it, with other layers inside.

Products are those of torch._int_mm, which oneDNN computes in bytes; word embeddings stay uint8 with a scale a row. Packed
linear layers are not supported: torch's kernels for 8 and 4 bits took 30 to 100 times as long as float on 1,024 tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module

from kerf.backends import has_bfloat16, refusal
from kerf.backends.protocol import SMALLEST, TOP_INPUT, Int8Linear, Kernel, KernelStep
from kerf.core.errors import refuse
from kerf.models import architecture, families, registry
from kerf.models.linearized import restored
from kerf.tensors.quantized import Quantized

MODEL = "layers.safetensors"
INSTALL = "pip install torch==2.13.0"
ZERO = 128  # what is subtracted from the codes of inputs, so that they are signed


def available() -> bool:
    """Whether the library is installed."""
    return True


def convert(opened: Any) -> Any:
    """A float32 graph of an opened encoder or reranker. Raises InputError for a model that the library cannot read."""
    return opened


def weights(graph: Any) -> dict[str, Module]:
    """Linear layers and word embeddings of the graph, by name."""
    net = registry.network(graph)
    return {**architecture.embeddings(net), **architecture.linears(net)}


def put_integers(graph: Any, layers: Mapping[str, Int8Linear | Quantized]) -> None:
    """Replace layers (name -> Int8Linear) of the graph by integer kernels, in place."""
    _put(graph, {name: vars(layer) for name, layer in layers.items()})


put_packed = put_integers


def _put(opened: Any, layers: dict[str, dict[str, Any]]) -> None:
    net = registry.network(opened)
    for name, parts in layers.items():
        if "zero_point" in parts:
            grid = {key: parts[key].float() for key in ("scale", "zero_point")}
            for other in architecture.tied(net, name):
                _pack(net.get_submodule(other), {"codes": parts["codes"], **grid})
        else:
            net.set_submodule(name, Integers(parts))


def _pack(module: Any, parts: dict[str, Tensor]) -> None:
    """Make word embeddings an `Embedding`, in place: their own class may scale the rows, as Gemma's does."""
    own = type(module)
    bases = (Embedding,) if own is torch.nn.Embedding else (own, Embedding)
    module.__class__ = type("Embedding", bases, {})
    del module.weight
    for name, part in parts.items():
        module.register_buffer(name, part)


class Integers(Module):
    """A layer with the `parts` of an `Int8Linear`. Inputs are signed too: their codes are stored minus ZERO."""

    codes: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__()
        for name in ("codes", "scale", "bias", "low", "delta"):
            self.register_buffer(name, parts.get(name))
        self._transposed = self.codes.T  # (columns, rows), as the kernel takes it
        self._sums = self.codes.sum(1, dtype=torch.float32) * self.scale
        self._added = self.bias
        self._units: Tensor | None = None  # None: each token has its own
        if parts.get("low") is not None:
            low, delta = parts["low"], parts["delta"]
            self._units, self._shift = 1 / delta, -low / delta - ZERO
            weight = self.codes * (self.scale[:, None] / delta)
            self._added = self.bias + weight @ low + ZERO * self._sums

    @property
    def weight(self) -> Tensor:
        """What networks ask for the type to compute in."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) to (..., rows)."""
        flat = x.reshape(-1, x.shape[-1])
        if self._units is not None:
            codes = torch.addcmul(self._shift, flat, self._units).round_()
            y = self._product(codes.clamp_(-ZERO, TOP_INPUT - ZERO))
        else:
            low, high = flat.aminmax(dim=1, keepdim=True)
            delta = ((high - low) / TOP_INPUT).clamp_(min=SMALLEST)
            y = self._product(flat.sub(low).div_(delta).round_().sub_(ZERO))
            y.mul_(delta).addcmul_(low + ZERO * delta, self._sums)
        return y.add_(self._added).view(*x.shape[:-1], -1)

    def _product(self, codes: Tensor) -> Tensor:
        return torch._int_mm(codes.to(torch.int8), self._transposed) * self.scale


class Embedding(torch.nn.Embedding):
    """Word embeddings as uint8 codes with a scale and a zero point a row, see `_pack`."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    weight = Integers.weight  # type: ignore[assignment]

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (...) to (..., features)."""
        return (self.codes[ids] - self.zero_point[ids]).mul_(self.scale[ids])


def settings(step: KernelStep) -> dict[str, str]:
    """The step's options in the library's own words, as `run` reads them from the manifest."""
    return {"compute": step.compute_dtype}


def save(graph: Any, folder: Path, half: bool) -> None:
    """Write the graph into `folder`; `half`: float weights as float16."""
    net, tensors = registry.network(graph), {}
    tied = getattr(net, "all_tied_weights_keys", None) or {}  # transformers ties them as it opens
    for name, value in net.state_dict().items():
        layer = name.rpartition(".")[0]
        owner = net.get_submodule(layer)
        if (f"{layer}.weight" if isinstance(owner, Embedding) else name) in tied:
            continue
        if half and value.is_floating_point() and not isinstance(owner, Integers | Embedding):
            value = value.half()
        tensors[name] = value.clone(memory_format=torch.contiguous_format)
    save_file(tensors, folder / MODEL)


def run(folder: Path, card: dict, threads: int) -> Kernel:
    """Raises InputError also on a CPU whose kernels sum products of bytes in 16 bits, as some without VNNI do."""
    large = torch.full((32, 64), 127, dtype=torch.int8)
    for sign in (1, -1):
        if (torch._int_mm(large, sign * large.T) != sign * 64 * 127**2).any():
            accepted = "a processor with whole sums of bytes (VNNI); other backends do without"
            raise refuse("backend", "torch", accepted)
    try:
        tensors = load_file(folder / MODEL)
    except SafetensorError as error:
        raise refusal("torch", "a model that it loads", error) from None
    layers: dict[str, dict[str, Tensor]] = {}
    for name in list(tensors):
        layer, _, part = name.rpartition(".")
        if f"{layer}.codes" in tensors or layer in layers:
            layers.setdefault(layer, {})[part] = tensors.pop(name)
    for layer, parts in layers.items():  # the model opens with placeholders
        tensors[f"{layer}.weight"] = torch.empty(parts["codes"].shape)
        if "bias" in parts:
            tensors[f"{layer}.bias"] = parts["bias"]
    tensors = restored(tensors, card.get("transposed", ()))
    opened = families.FAMILIES[card["kind"]].with_weights(folder, card["class"], tensors)
    torch.set_num_threads(threads)
    _put(opened, layers)
    whole, names = families.whole(opened), families.of_opened(opened).inputs(opened)
    if card["settings"]["compute"] == "bfloat16" and has_bfloat16():
        whole.net.to(torch.bfloat16)

    def kernel(**inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return whole(*(torch.from_numpy(inputs[name]) for name in names)).numpy()

    return kernel
