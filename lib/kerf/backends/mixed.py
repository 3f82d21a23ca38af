"""Texts of many lengths in one batch: the check that a graph or a new candidate passes before anything is measured."""

from typing import Any

import numpy as np

from kerf.backends.protocol import Kernel
from kerf.backends.tokens import batch
from kerf.core.finite import check_finite
from kerf.models import families

# How far an answer alone may be from the answer in a batch, relative to the longest answer. Float sums differ in their last
# bits with the shape of a batch. Where inputs are rounded to bytes or bfloat16, one value rounded up instead of down grows
# from layer to layer up to the rounding error itself: MiniLM reaches 0.05. A float graph is compared with the model
# itself, far more strictly (`kerf.backends.step.check_shapes`).
SAME, ROUNDED = 0.02, 0.2
LONG, LONGEST = (
    256,
    1024,
)  # tokens of the longest text: at least (where the model takes them), at most


def sequences(opened: Any) -> list[list[int]]:
    """Token ids of texts from one token up to more than a sliding window on both sides, within the model's limit."""
    net = families.of_opened(opened).network(opened)
    names = ("local_attention", "sliding_window", "attention_window")
    windows = [getattr(net.config, name, None) or 0 for name in names]
    window = int(np.max(np.hstack(windows)))
    longest = min(max(LONG, 2 * window + 16), LONGEST, opened.max_seq_length or LONGEST)
    size = min(len(opened.tokenizer), net.get_input_embeddings().num_embeddings)
    ordinary = np.setdiff1d(np.arange(size), opened.tokenizer.all_special_ids)
    lengths = dict.fromkeys([1, min(3, longest), min(9, longest), longest // 2 or 1, longest])
    generator = np.random.default_rng(0)
    return [generator.choice(ordinary, length).tolist() for length in lengths]


def check(
    run: Kernel, tokens: list[list[int]], pad: int, most: int | None, same: float = SAME
) -> None:
    """Raise ValueError for a kernel whose answer to a text depends on the batch, or is NaN or infinite.

    tokens: the texts, the longest last; pad, most: see `kerf.backends.tokens.batch`; same: see SAME.
    """
    together = run(**batch(tokens, pad, most))
    alone = np.concatenate([run(**batch([text], pad, most)) for text in tokens])
    for rows, how in ((alone, "alone"), (together, "beside the others")):
        check_finite(rows, [f"{len(text)} tokens, {how}" for text in tokens], "the kernel")
    longest = np.linalg.norm(alone, axis=1).max().clip(1e-12)
    difference = np.linalg.norm(together - alone, axis=1) / longest
    worst = int(difference.argmax())
    if difference[worst] > same:
        raise ValueError(
            f"the kernel answers a text of {len(tokens[worst])} tokens otherwise alone than beside one of {len(tokens[-1])}: "
            f"{difference[worst]:.3f} of the longest answer apart, where {same} is accepted"
        )
