"""The modules of sentence-transformers behind a network, and the conventions by which an opened model is used."""

from typing import Any

# What each module that stays in float is, for whoever lists what a method left.
BEHIND = "a module behind the network, which no method changes"


def float_modules(opened: Any) -> list[tuple[str, int, str]]:
    """Name (as of its folder), parameters and reason of each module behind the network that stays in float, such as a Dense layer."""
    rows = []
    for name, module in list(opened.named_children())[1:]:
        if count := sum(parameter.numel() for parameter in module.parameters()):
            rows.append((f"{name}_{type(module).__name__}", count, BEHIND))
    return rows


def conventions(opened: Any) -> dict[str, Any]:
    """How the model is used: prompts by name, pooling and the modules behind the network, similarity, lengths of an embedding and
    of a text; null where it has none."""
    modules = list(opened)[1:]
    pooling = [mode for module in modules if (mode := getattr(module, "pooling_mode", None))]
    longest = opened.max_seq_length
    return {
        "prompts": {name: text for name, text in opened.prompts.items() if text},
        "default_prompt": opened.default_prompt_name,
        "pooling": str(pooling[0]) if pooling else None,
        "modules": [type(module).__name__ for module in modules],
        "similarity": getattr(opened, "similarity_fn_name", None),
        "truncate_dim": getattr(opened, "truncate_dim", None),
        "max_seq_length": longest if longest and longest < 10**9 else None,
    }
