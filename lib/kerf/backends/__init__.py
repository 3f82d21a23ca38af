"""Real kernels: candidates that compute in bytes, not only lie in them. One library a file, all with the same names:

available(): whether it is installed, INSTALL: the line that installs it; convert(opened): the model as its graph, of
which weights(graph) names the layers, put_integers and put_packed (graph, found) change them, and save(graph, folder,
half) writes; run(folder, card, threads): the model of a candidate as a function of input_ids, attention_mask and
token_type_ids, (texts, tokens) each, that gives embeddings or scores (texts, features); settings(step) is what the card
tells it. Which library runs which method stands in `kerf.config.backends`.
"""

import logging as python_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from types import ModuleType
from unittest.mock import patch

from kerf.config.backends import BACKENDS
from kerf.config.backends import modules as modules
from kerf.core.errors import refuse

MASKED = (
    -1e9
)  # a score of what is not attended to: exp of it is 0, and it is finite in bfloat16 too


def backend(name: str) -> ModuleType:
    """The module of a library; InputError when it is not installed."""
    found = import_module(BACKENDS.named(name, "backend").module)
    if not found.available():
        raise refuse("backend", name, f"a library that is installed: `{found.INSTALL}`")
    return found


def adds_bytes_exactly() -> bool:
    """Whether this processor adds products of bytes in 32 bits (VNNI, AMX); without, sums of two saturate at 16."""
    from kerf.core.cache import machine

    return any("vnni" in flag or flag == "amx_int8" for flag in machine()["flags"])


@contextmanager
def conversion(name: str, opened) -> Iterator[tuple]:
    """While it lasts, a library reads `kinds.whole(opened)`, quietly; that, and an example of what it takes. What it cannot
    read is InputError."""
    import torch
    from transformers.utils import logging

    from kerf.models import families

    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    example = dict(
        zip(
            families.of_opened(opened).inputs(opened),
            (ids, (ids > 0).long(), torch.zeros_like(ids)),
            strict=False,
        )
    )
    told, disabled = logging.get_verbosity(), python_logging.root.manager.disable
    try:
        with (
            attending(),
            warnings.catch_warnings(),
            redirect_stderr(StringIO()),
        ):  # torch's exporter prints the whole graph beside its error
            warnings.simplefilter("ignore")
            logging.set_verbosity_error()
            python_logging.disable()
            yield families.whole(opened), example
    except Exception as error:
        cause = error
        while cause.__cause__:  # exporters say which operator it was in the first of a chain
            cause = cause.__cause__
        said = " ".join(str(cause).split()) or type(cause).__name__
        raise refuse(
            "backend", name, f"a model whose operators and shapes it takes ({said[:240]})"
        ) from error
    finally:
        logging.set_verbosity(told)
        python_logging.disable(disabled)


@contextmanager
def attending() -> Iterator[None]:
    """While it lasts, attention that is traced masks by MASKED. Rows of a sliding window that hold only padding would be
    softmax of -inf alone: torch answers 0 there, graphs of other libraries NaN."""
    import torch

    attention = torch.nn.functional.scaled_dot_product_attention

    def finite(query, key, value, attn_mask=None, *rest, **options):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(
                ~attn_mask, MASKED
            )
        elif attn_mask is not None:
            attn_mask = attn_mask.clamp(min=MASKED)
        return attention(query, key, value, attn_mask, *rest, **options)

    with patch.object(torch.nn.functional, "scaled_dot_product_attention", finite):
        yield
