"""Backends: candidates that run on a library's INT8, INT4 or bfloat16 kernels. One library a module, see `protocol`."""

import logging as python_logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from importlib import import_module
from io import StringIO
from typing import Any, cast
from unittest.mock import patch

from kerf.backends.protocol import BackendModule
from kerf.config.backends import BACKENDS
from kerf.config.backends import modules as modules
from kerf.core import cache
from kerf.core.errors import InputError, refuse
from kerf.models import families

MASKED = -1e9  # attention score of a masked token: its exp is 0, and it is finite in bfloat16 too

# What a library's refusal of a model ends with, since few of them name a way out.
ANY_MODEL = "backend torch takes any model, by method static, dynamic or bfloat16"


def backend(name: str) -> BackendModule:
    """The module of a backend. Raises InputError when its library is not installed."""
    library = cast(BackendModule, import_module(BACKENDS.named(name, "backend").module))
    if not library.available():
        raise refuse("backend", name, f"a library that is installed: `{library.INSTALL}`")
    return library


def adds_bytes_exactly() -> bool:
    """Whether this CPU sums products of bytes in 32 bits (VNNI, AMX); without, sums of two saturate at 16 bits."""
    return any("vnni" in flag or flag == "amx_int8" for flag in cache.machine()["flags"])


def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16; without, libraries emulate it, a hundred times slower."""
    return any("bf16" in flag for flag in cache.machine()["flags"])


def refusal(name: str, accepted: str, error: Exception) -> InputError:
    """The InputError for a model that a library rejects, with the last line of the library's error."""
    lines = str(error).strip().splitlines() or [""]
    return refuse("backend", name, f"{accepted} ({type(error).__name__}: {lines[-1][-160:]})")


@contextmanager
def conversion(name: str, opened: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the whole model as one module, and example inputs to trace it with; exporters are quiet meanwhile.

    Attention masks with MASKED instead of -inf: a row that holds only padding, as in a sliding window, is a softmax of -inf
    alone, which is 0 in torch and NaN in graphs of other libraries. Raises InputError, with the first cause, for a model that
    the exporter cannot read.
    """
    import torch
    from torch.nn import functional
    from transformers import masking_utils
    from transformers.utils import logging

    attention = functional.scaled_dot_product_attention

    def finite(
        query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **options: Any
    ) -> Any:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            zeros = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = zeros.masked_fill(~attn_mask, MASKED)
        elif attn_mask is not None:
            attn_mask = attn_mask.clamp(min=MASKED)
        return attention(query, key, value, attn_mask, *rest, **options)

    def broadcast(mask: Callable) -> Callable:
        return lambda *ranges: mask(*masking_utils._non_vmap_expansion_sdpa(*ranges))

    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    inputs = (ids, (ids > 0).long(), torch.zeros_like(ids))
    example = dict(zip(families.of_opened(opened).inputs(opened), inputs, strict=False))
    verbosity, disabled = logging.get_verbosity(), python_logging.root.manager.disable
    finite_masks = patch.object(functional, "scaled_dot_product_attention", finite)
    no_vmap = patch.multiple(
        masking_utils, _vmap_expansion_sdpa=broadcast, TransformGetItemToIndex=nullcontext
    )
    try:
        # torch's exporter prints the whole graph on standard error beside its exception.
        with (
            finite_masks,
            no_vmap,
            torch.no_grad(),
            warnings.catch_warnings(),
            redirect_stderr(StringIO()),
        ):
            warnings.simplefilter("ignore")
            logging.set_verbosity_error()
            python_logging.disable()
            yield families.whole(opened), example
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__:  # exporters name the operator in the first exception of a chain
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        accepted = f"a model whose operators and shapes it takes ({reason[:280]}); {ANY_MODEL}"
        raise refuse("backend", name, accepted) from error
    finally:
        logging.set_verbosity(verbosity)
        python_logging.disable(disabled)
