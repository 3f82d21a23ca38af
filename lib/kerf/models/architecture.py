"""The parts of a network of transformers: its linear layers, word embeddings and blocks, in any architecture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kerf.core.errors import refuse
from kerf.models.hooks import attached

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Embedding, Linear, Module

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def linears(net: Any) -> dict[str, Linear]:
    """Linear layers by name, in the order of definition, without the head of a language model or of a reranker (one row); of static
    embeddings their table."""
    if is_table(net):
        return {"embedding": net.embedding}
    head = net.get_output_embeddings()
    layers = _linears_in(net).items()
    return {name: m for name, m in layers if m is not head and m.out_features > 1}


def _linears_in(module: Module, prefix: str = "") -> dict[str, Linear]:
    import torch

    modules = module.named_modules(prefix=prefix)
    return {name: m for name, m in modules if isinstance(m, torch.nn.Linear)}


def is_table(net: Any) -> bool:
    """Whether a network is nothing but a table of static embeddings, which has no inputs to calibrate on."""
    import torch

    return isinstance(getattr(net, "embedding", None), torch.nn.EmbeddingBag)


def embeddings(net: Any) -> dict[str, Embedding | Linear]:
    """Word embeddings by name, and the head where it has a weight of its own; positions and types stay float."""
    if is_table(net):
        return {}
    words, head = net.get_input_embeddings(), net.get_output_embeddings()
    tables = [words, head] if head is not None and head.weight is not words.weight else [words]
    return {name: m for name, m in net.named_modules() if any(m is table for table in tables)}


def tied(net: Any, name: str) -> list[str]:
    """Names of the modules whose weight is that of module `name`, itself included: T5 has its word embeddings twice."""
    weight = net.get_submodule(name).weight
    return [other for other, m in net.named_modules() if getattr(m, "weight", None) is weight]


def blocks(net: Any) -> dict[str, Module]:
    """The repeated layers by name, in the order they run. Raises InputError when there is no such list."""
    import torch

    count = getattr(net.config, "num_hidden_layers", 0)
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return {f"{name}.{index}": block for index, block in enumerate(module)}
    raise refuse("model", type(net).__name__, "a network with a list of num_hidden_layers blocks")


def neurons(net: Any) -> dict[str, dict[str, int]]:
    """The linear layers that narrow a block's feed-forward part, by name, with those that widen it before: 1 row a neuron.
    Raises InputError where a block has not one such layer, or where the output of those before is as wide as the hidden states."""
    width = getattr(net.config, "intermediate_size", None)
    units = {}
    for name, block in blocks(net).items():
        layers = _linears_in(block, name)
        widen = [name for name, layer in layers.items() if layer.out_features == width]
        narrow = [name for name, layer in layers.items() if layer.in_features == width]
        if not widen or len(narrow) != 1 or {*widen} & {*narrow}:
            accepted = "feed-forward layers of intermediate_size, one after others in each block, as in BERT and Llama"
            raise refuse("model", type(net).__name__, accepted)
        units[narrow[0]] = dict.fromkeys(widen, 1)
    return units


def heads(net: Any) -> dict[str, dict[str, int]]:
    """The linear layers that mix a block's attention heads, by name, with those before them and the rows that a unit has there: a
    unit is a key and value head with the query heads that share it. Raises InputError for a network without ATTENTION in each
    block, or without head_dim in its configuration, so that fewer heads could not be distinguished from wider ones."""
    units = {}
    for name, block in blocks(net).items():
        layers = {name.rpartition(".")[2]: name for name in _linears_in(block, name)}
        if not {*ATTENTION} <= {*layers} or not hasattr(net.config, "head_dim"):
            accepted = "attention of q_proj, k_proj, v_proj, o_proj and a configuration with head_dim, as in Llama and Qwen"
            raise refuse("model", type(net).__name__, accepted)
        q, k, v, o = (layers[part] for part in ATTENTION)
        size, queries = head_dim(net), net.config.num_attention_heads
        units[o] = {k: size, v: size, q: size * (queries // net.config.num_key_value_heads)}
    return units


def head_dim(net: Any) -> int:
    """Dimensions of an attention head."""
    config = net.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class _ReachedError(Exception):
    """The first block was called."""


def entry(net: Any, batch: dict) -> tuple[Tensor, tuple]:
    """Arguments of the first block for a batch: hidden states (texts, length, features), other arguments."""
    calls = []

    def stop(_: Module, args: tuple, kwargs: dict) -> None:
        calls.append((args[0], (args[1:], kwargs)))
        raise _ReachedError

    first = next(iter(blocks(net).values()))
    hook = first.register_forward_pre_hook(stop, with_kwargs=True)
    with attached([hook]), suppress(_ReachedError):
        net(**batch)
    return calls[0]


def run_block(block: Callable, hidden: Tensor, options: tuple) -> Tensor:
    """Hidden states after `block`; options: as `entry` returns them."""
    args, kwargs = options
    output = block(hidden, *args, **kwargs)
    return output[0] if isinstance(output, tuple) else output


def after_blocks(net: Any, batch: dict, states: Tensor, count: int | None = None) -> Tensor:
    """Logits (texts, length, vocabulary) that a language model computes from the states after its first `count` blocks (at
    least one), or after all of them. These blocks are skipped: each returns its input, the last of them `states`."""
    skipped: list[Any] = list(blocks(net).values())[:count]
    for block in skipped[:-1]:
        block.forward = lambda hidden, *_, **__: hidden
    skipped[-1].forward = lambda *_, **__: states
    try:
        return net(**{**batch, "logits_to_keep": 0}).logits
    finally:
        for block in skipped:
            del block.forward


def check_blocks(net: Any, batch: dict) -> None:
    """Refuse a network that is more than its blocks, one after another, called with the arguments of the first."""
    import torch

    has_head = net.get_output_embeddings() is not None
    accepted = "a network whose blocks all take the same arguments and return their states alone"
    refusal = refuse("model", type(net).__name__, accepted)
    with torch.no_grad():
        hidden, options = entry(net, batch)
        try:
            for block in blocks(net).values():
                hidden = run_block(block, hidden, options)
            output = after_blocks(net, batch, hidden) if has_head else hidden
        except (IndexError, RuntimeError, TypeError, ValueError):
            raise refusal from None
        whole = net(**{**batch, "logits_to_keep": 0} if has_head else batch)
        expected = whole.logits if has_head else whole.last_hidden_state
    mask, same_shape = batch["attention_mask"].bool(), output.shape == expected.shape
    if not same_shape or not torch.allclose(output[mask], expected[mask], rtol=1e-3, atol=1e-3):
        raise refusal
