"""The conventions by which an opened model of sentence-transformers is used."""

from typing import Any


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
