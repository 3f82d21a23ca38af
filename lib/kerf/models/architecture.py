"""The anatomy of a network: its linear layers, word embeddings and repeated blocks, found without knowing its architecture."""

from kerf.core.errors import refuse
from kerf.models.hooks import attached


def linears(net) -> dict:
    """Linear layers by name, in the order of the network's definition; the head of a language model apart, and that of a
    reranker: one row, which everything goes through."""
    import torch

    head = net.get_output_embeddings()
    found = (
        (name, module)
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear)
    )
    return {
        name: module for name, module in found if module is not head and module.out_features > 1
    }


def embeddings(net) -> dict:
    """Word embeddings by name, and the head where it has a weight of its own; positions and types stay float."""
    words, head = net.get_input_embeddings(), net.get_output_embeddings()
    own = head is not None and head.weight is not words.weight
    return {
        name: module
        for name, module in net.named_modules()
        if module is words or own and module is head
    }


def blocks(net) -> dict:
    """The repeated layers by name, in the order they run. Raises InputError when there is no such list."""
    import torch

    for name, module in net.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == getattr(
            net.config, "num_hidden_layers", 0
        ):
            return {f"{name}.{index}": block for index, block in enumerate(module)}
    raise refuse("model", type(net).__name__, "a network with a list of num_hidden_layers blocks")


def neurons(net) -> dict[str, dict[str, int]]:
    """The linear layers that narrow a block's feed-forward part, by name, with those that widen it before: 1 row a neuron.

    Raises InputError for a network where one layer of each block does not take what others of it give, or
    where that is as wide as the states.
    """
    wide, found = getattr(net.config, "intermediate_size", None), {}
    for _, layers in _by_block(net):
        into = [n for n, m in layers.items() if m.out_features == wide]
        out = [n for n, m in layers.items() if m.in_features == wide]
        if not into or len(out) != 1 or {*into} & {*out}:
            accepted = "feed-forward layers of intermediate_size, one after others in each block, as in BERT and Llama"
            raise refuse("model", type(net).__name__, accepted)
        found[out[0]] = dict.fromkeys(into, 1)
    return found


def heads(net) -> dict[str, dict[str, int]]:
    """The linear layers that mix a block's attention heads, by name, with those before them and the rows that a unit
    has there: a unit is a key and value head with the query heads that share it.

    Raises InputError for a network without q_proj, k_proj, v_proj and o_proj in each block, or whose configuration
    cannot say how many dimensions a head has, so that fewer heads could not be told from wider ones.
    """
    accepted = "attention of q_proj, k_proj, v_proj, o_proj and a configuration with head_dim, as in Llama and Qwen"
    parts, found = ("q_proj", "k_proj", "v_proj", "o_proj"), {}
    for _, layers in _by_block(net):
        named = {n.rpartition(".")[2]: n for n in layers}
        if not {*parts} <= {*named} or not hasattr(net.config, "head_dim"):
            raise refuse("model", type(net).__name__, accepted)
        size, (q, k, v, o) = head_dim(net), (named[part] for part in parts)
        shared = net.config.num_attention_heads // net.config.num_key_value_heads
        found[o] = {k: size, v: size, q: size * shared}
    return found


def head_dim(net) -> int:
    """Dimensions of an attention head."""
    return (
        getattr(net.config, "head_dim", None)
        or net.config.hidden_size // net.config.num_attention_heads
    )


def _by_block(net) -> list[tuple[str, dict]]:
    """Name of every block, and its linear layers by name."""
    import torch

    return [
        (
            name,
            {f"{name}.{n}": m for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)},
        )
        for name, block in blocks(net).items()
    ]


class _Reached(Exception):
    """The first block was reached: what it was called with."""


def entry(net, batch: dict) -> tuple:
    """What the first block is called with on a batch: hidden states (texts, length, features), other arguments."""

    def stop(_, args, kwargs):
        raise _Reached(args[0], (args[1:], kwargs))

    first = next(iter(blocks(net).values()))
    with attached([first.register_forward_pre_hook(stop, with_kwargs=True)]):
        try:
            net(**batch)
        except _Reached as reached:
            return reached.args
    raise AssertionError("the first block was not reached")


def run_block(block, hidden, options: tuple):
    """Hidden states after `block`; options: as `entry` gives them."""
    args, kwargs = options
    output = block(hidden, *args, **kwargs)
    return output[0] if isinstance(output, tuple) else output


def after_blocks(net, batch: dict, states, count: int | None = None):
    """Logits (texts, length, vocabulary) that a language model makes of the states of its first `count` blocks, at
    least one; of all without it.

    These blocks are stepped over: each hands on what it gets, the last of them `states`.
    """
    over = list(blocks(net).values())[:count]
    for block in over[:-1]:
        block.forward = lambda hidden, *_, **__: hidden
    over[-1].forward = lambda *_, **__: states
    try:
        return net(**{**batch, "logits_to_keep": 0}).logits
    finally:
        for block in over:
            del block.forward


def check_blocks(net, batch: dict) -> None:
    """Refuse a network that is more than its blocks, one after another, called with what the first is called with."""
    import torch

    head = net.get_output_embeddings() is not None
    accepted = "a network whose blocks all take the same arguments and hand on their states alone"
    with torch.no_grad():
        hidden, options = entry(net, batch)
        try:
            for block in blocks(net).values():
                hidden = run_block(block, hidden, options)
            found = after_blocks(net, batch, hidden) if head else hidden
        except (IndexError, RuntimeError, TypeError, ValueError):
            raise refuse("model", type(net).__name__, accepted) from None
        wanted = (
            net(**{**batch, "logits_to_keep": 0}).logits if head else net(**batch).last_hidden_state
        )
    mask = batch["attention_mask"].bool()
    if found.shape != wanted.shape or not torch.allclose(
        found[mask], wanted[mask], rtol=1e-3, atol=1e-3
    ):
        raise refuse("model", type(net).__name__, accepted)
