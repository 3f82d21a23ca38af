"""torch's own products of bytes: the model as sentence-transformers opens it, with other layers in it. Nothing has to be installed.

A layer with an `Int8Linear` rounds its inputs and multiplies them with torch._int_mm, which oneDNN computes in bytes; word
embeddings keep whole bytes, a scale a row. bfloat16 computes the network in half the bits. Packed linear layers are not
here: torch's kernels for weights of 8 and 4 bits took a batch of 1,024 tokens 30 to 100 times as long as float.
"""

from pathlib import Path

import numpy as np
import torch

from kerf.backends.int8 import SMALLEST, TOP_INPUT, ZERO
from kerf.core.cache import machine
from kerf.core.errors import refuse

MODEL = "layers.safetensors"
INSTALL = "pip install torch==2.13.0"


def available() -> bool:
    """It is what Kerf itself computes with."""
    return True


def convert(opened):
    """The model as it is."""
    return opened


def weights(graph) -> dict[str, torch.nn.Module]:
    """Linear layers and word embeddings by name."""
    from kerf.models import architecture, registry

    net = registry.network(graph)
    return {**architecture.embeddings(net), **architecture.linears(net)}


def put_integers(graph, found: dict) -> None:
    """Put the layers of `found` (name -> `kerf.backends.int8.Int8Linear`) on integer kernels, in place."""
    _put(
        graph,
        {
            name: {
                "codes": layer.codes,
                "scale": layer.scale,
                "bias": layer.bias,
                "low": layer.low,
                "delta": layer.delta,
            }
            for name, layer in found.items()
        },
    )


def put_packed(graph, found: dict) -> None:
    """Keep the word embeddings of `found` (name -> Quantized) in bytes."""
    _put(
        graph,
        {
            name: {
                "codes": value.codes,
                "scale": value.scale.float(),
                "zero_point": value.zero_point.float(),
            }
            for name, value in found.items()
        },
    )


def _put(graph, found: dict[str, dict]) -> None:
    from kerf.models import registry

    for name, parts in found.items():
        registry.network(graph).set_submodule(
            name, (Embedding if "zero_point" in parts else Integers)(parts)
        )


class Integers(torch.nn.Module):
    """A linear layer on bytes: both sides signed, inputs by 128 lower than the codes that `Int8Linear` speaks of."""

    def __init__(self, parts: dict) -> None:
        super().__init__()
        for name, value in parts.items():
            self.register_buffer(name, value)
        self.per_token = parts.get("low") is None
        self._turned = self.codes.T  # (columns, rows), as the kernel wants it
        sums = self.codes.sum(1, dtype=torch.float32) * self.scale
        self._sums, self._added = sums, self.bias
        if not self.per_token:
            self._units, self._offset = 1 / self.delta, -self.low / self.delta - ZERO
            self._added = (
                self.bias
                + (self.codes * (self.scale[:, None] / self.delta)) @ self.low
                + ZERO * sums
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., columns) to (..., rows)."""
        flat = x.reshape(-1, x.shape[-1])
        if self.per_token:
            low, high = flat.aminmax(dim=1, keepdim=True)
            delta = ((high - low) / TOP_INPUT).clamp_(min=SMALLEST)
            units = flat.sub(low).div_(delta).round_().sub_(ZERO)
        else:
            units = (
                torch.addcmul(self._offset, flat, self._units)
                .round_()
                .clamp_(-ZERO, TOP_INPUT - ZERO)
            )
        y = torch._int_mm(units.to(torch.int8), self._turned) * self.scale
        if self.per_token:
            y.mul_(delta).addcmul_(low + ZERO * delta, self._sums)
        return y.add_(self._added).view(*x.shape[:-1], -1)


class Embedding(torch.nn.Module):
    """Word embeddings as bytes, a scale and a zero point a row."""

    def __init__(self, parts: dict) -> None:
        super().__init__()
        for name, value in parts.items():
            self.register_buffer(name, value)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) token numbers to (..., features)."""
        return (self.codes[ids] - self.zero_point[ids]).mul_(self.scale[ids])


def settings(step) -> dict[str, str]:
    """What the network is computed in."""
    return {"compute": step.compute_dtype}


def save(graph, folder: Path, half: bool) -> None:
    """Write the network's tensors; half: those that were not quantized as float16."""
    from safetensors.torch import save_file

    from kerf.models import registry

    net = registry.network(graph)
    small = {
        name for name, module in net.named_modules() if isinstance(module, Integers | Embedding)
    }
    tensors = {
        name: value.half()
        if half and value.is_floating_point() and name.rpartition(".")[0] not in small
        else value
        for name, value in net.state_dict().items()
    }
    save_file(
        {
            name: value.clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        },
        folder / MODEL,
    )


def run(folder: Path, card: dict, threads: int):
    """The model: input_ids, attention_mask and token_type_ids in, answers out; from any thread. Raises InputError when its file cannot be read, and
    on a processor whose products of bytes saturate."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from kerf.models import families

    _check_products()
    try:
        tensors = load_file(folder / MODEL)
    except SafetensorError as error:
        raise refuse("backend", "torch", f"a model that it loads ({error})") from None
    parts: dict[str, dict] = {}
    for name in [name for name in tensors if name.endswith(".codes")]:
        owner = name.removesuffix("codes")
        parts[owner[:-1]] = {
            key.removeprefix(owner): tensors.pop(key)
            for key in list(tensors)
            if key.startswith(owner)
        }
        tensors[f"{owner}weight"] = torch.empty(
            parts[owner[:-1]]["codes"].shape
        )  # until the layer is put in its place
        if "bias" in parts[owner[:-1]]:
            tensors[f"{owner}bias"] = parts[owner[:-1]]["bias"]
    opened = families.FAMILIES[card["kind"]].with_weights(folder, card["class"], tensors)
    torch.set_num_threads(threads)
    _put(opened, parts)
    whole, taken = families.whole(opened), families.of_opened(opened).inputs(opened)
    if card["settings"]["compute"] == "bfloat16" and any(
        "bf16" in flag for flag in machine()["flags"]
    ):  # else it would be emulated
        whole.net.to(torch.bfloat16)

    def answer(**given: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return whole(*(torch.from_numpy(given[name]) for name in taken)).numpy()

    return answer


def _check_products() -> None:
    """Refuse a processor that adds products of bytes up in 16 bits, as kernels for some without VNNI do."""
    large = torch.full((32, 64), 127, dtype=torch.int8)
    for sign in (1, -1):
        if (torch._int_mm(large, sign * large.T) != sign * 64 * 127**2).any():
            raise refuse(
                "backend",
                "torch",
                "a processor with whole sums of bytes (VNNI); openvino and onnxruntime have others",
            )
