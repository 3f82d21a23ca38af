"""Texts of many lengths in one batch, by which a graph and a finished candidate are judged before anything is measured."""

from collections.abc import Callable

import numpy as np

from kerf.backends.tokens import padded
from kerf.core.finite import check_finite

# How far an answer alone may be from that beside others, of the longest answer. Sums in float differ in their last bits with the
# shape of a batch; where inputs are rounded to bytes or bfloat16, one that is rounded up and not down grows from layer to layer, up
# to what rounding costs at all: 0.05 was seen in MiniLM. A graph in float is held against the model itself, far closer (`check_shapes`).
SAME, ROUNDED = 0.02, 0.2
LONG, LONGEST = (
    256,
    1024,
)  # tokens of the longest text, at least where the model takes them, and at most


def sequences(opened) -> list[list[int]]:
    """Token numbers of texts from one token to more than a sliding window has on both sides, as far as the model takes them."""
    from kerf.models import families

    net = families.of_opened(opened).network(opened)
    windows = [
        getattr(net.config, name, None) or 0
        for name in ("local_attention", "sliding_window", "attention_window")
    ]
    window = max(value if isinstance(value, int) else max(value) for value in windows)
    longest = min(max(LONG, 2 * window + 16), LONGEST, opened.max_seq_length or LONGEST)
    known = np.setdiff1d(
        np.arange(min(len(opened.tokenizer), net.get_input_embeddings().num_embeddings)),
        opened.tokenizer.all_special_ids,
    )
    lengths = dict.fromkeys([1, min(3, longest), min(9, longest), longest // 2 or 1, longest])
    generator = np.random.default_rng(0)
    return [generator.choice(known, length).tolist() for length in lengths]


def batch(tokens: list[list[int]], pad: int, most: int | None) -> dict[str, np.ndarray]:
    """What a kernel takes, int64 (texts, tokens) each."""
    ids, mask = padded(tokens, pad, most)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def check(
    run: Callable[..., np.ndarray],
    tokens: list[list[int]],
    pad: int,
    most: int | None,
    same: float = SAME,
) -> None:
    """Raise ValueError for a kernel that answers a text alone otherwise than beside the others, or with NaN or infinity."""
    together = run(**batch(tokens, pad, most))
    alone = np.concatenate([run(**batch([each], pad, most)) for each in tokens])
    for rows, how in ((alone, "alone"), (together, "beside the others")):
        check_finite(rows, [f"{len(each)} tokens, {how}" for each in tokens], "the kernel")
    off = np.linalg.norm(together - alone, axis=1) / np.linalg.norm(alone, axis=1).max().clip(1e-12)
    worst = int(off.argmax())
    if off[worst] > same:
        raise ValueError(
            f"the kernel answers a text of {len(tokens[worst])} tokens otherwise alone than beside one of {len(tokens[-1])}: "
            f"{off[worst]:.3f} of the longest answer apart, where {same} is accepted"
        )
