"""Every matrix of a network as a torch.nn.Linear, which is what methods read and change, and the way back to the original.

Two kinds of layers keep their weights in another form: Conv1D (GPT-2) transposed, and mixtures of experts all experts' matrices in
one parameter (experts, rows, columns). In `linearized` networks each is a Linear whose weight is a view of the original, that of
expert 3 being called `mlp.experts.gate_up_proj[3]`. A candidate's weight file has these names; `restored` reverses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

EXPERT = re.compile(
    r"(.*)\[(\d+)\](\.weight)?"
)  # a matrix, or its weight: the parameter, the expert
PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")  # as transformers names experts' parameters


def linearized(net: Any) -> Any:
    """`net` itself, its Conv1D layers and experts replaced in place; a network that has none stays as it is."""
    for name, module in list(net.named_modules()):
        if type(module).__name__ == "Conv1D":
            net.set_submodule(name, _linear(module.weight, True, module.bias))
        elif hasattr(module, "has_gate") and hasattr(module, "is_transposed"):
            _split(module)
    return net


def _linear(weight: Tensor, transposed: bool, bias: Any = None) -> Module:
    """A Linear with the weight (rows, columns), or (columns, rows) where it is transposed."""
    import torch

    layer: Any = torch.nn.Linear(1, 1, bias=False, device="meta")
    view = weight.detach().T if transposed else weight.detach()
    layer.weight, layer.bias = torch.nn.Parameter(view, weight.requires_grad), bias
    (layer.out_features, layer.in_features), layer.transposed = view.shape, transposed
    return layer.eval()


def _split(experts: Any) -> None:
    """Give the experts that transformers' `use_experts_implementation` describes a Linear a matrix; biases stay together."""
    for name in PROJECTIONS:
        if name in experts._parameters:
            for index, weight in enumerate(experts._parameters.pop(name)):
                layer = _linear(weight, experts.is_transposed)
                experts.add_module(f"{name}[{index}]", layer)
            experts.num_experts = index + 1
    experts.forward = MethodType(_forward, experts)


def _forward(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Sum (tokens, features) over the experts `chosen` (tokens, k) for each token, by their weights (tokens, k).

    An expert that no token chose is called too, with none, so that every batch passes all layers in the same order.
    """
    import torch

    def project(name: str, inputs: Tensor) -> Tensor:
        output = experts._modules[f"{name}[{index}]"](inputs)
        return output + getattr(experts, f"{name}_bias")[index] if experts.has_bias else output

    result = torch.zeros_like(hidden)
    for index in range(experts.num_experts):
        token, place = torch.where(chosen == index)
        inner = project("gate_up_proj" if experts.has_gate else "up_proj", hidden[token])
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        output = project("down_proj", inner)
        if experts.has_post_expert_norm:
            output = experts.post_expert_norm(output)
        result.index_add_(0, token, (output * weights[token, place, None]).to(result.dtype))
    return result


def transposed(net: Any) -> list[str]:
    """Names in the original network of the weights that a linearized one has transposed."""
    modules = net.named_modules()
    names = [f"{name}.weight" for name, m in modules if getattr(m, "transposed", False)]
    return list(dict.fromkeys(EXPERT.sub(r"\1", name) for name in names))


def restored(weights: dict[str, Tensor], transposed: Iterable[str] = ()) -> dict[str, Tensor]:
    """Tensors of a linearized network, by name, as those of the original one."""
    import torch

    result: dict[str, Tensor] = {}
    stacks: dict[str, list[tuple[int, Tensor]]] = {}
    for name, value in weights.items():
        if match := EXPERT.fullmatch(name):
            stacks.setdefault(match[1], []).append((int(match[2]), value))
        else:
            result[name] = value
    for name, parts in stacks.items():
        result[name] = torch.stack([value for _, value in sorted(parts, key=lambda part: part[0])])
    return result | {name: result[name].mT.contiguous() for name in transposed}
