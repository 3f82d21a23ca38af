"""The families of models. What differs between them is in one module a family, with the names of `protocol.Family`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kerf.core.registry import Registry
from kerf.models.families import causal, cross_encoder, encoder
from kerf.models.families.protocol import Family

_OWN: tuple[Family, ...] = (encoder, causal, cross_encoder)
FAMILIES = Registry("kerf.families", *_OWN)


def name_of(folder: Path) -> str:
    """Name of the family of the model in `folder`, by its configuration."""
    return of(folder).NAME


def of(folder: Path) -> Family:
    """The family of the model in `folder`."""
    config = folder / "config.json"
    configured = json.loads(config.read_text()) if config.is_file() else {}
    architecture = (configured.get("architectures") or [""])[0]
    return _last(lambda family: family.takes(architecture, folder))


def of_opened(opened: Any) -> Family:
    """The family of an opened model."""
    return _last(lambda family: family.opens_as(opened))


def _last(matches: Callable[[Family], bool]) -> Family:
    """The last family in the registry that matches, since the first one, the encoders, takes every model."""
    return next(family for family in reversed(list(FAMILIES.values())) if matches(family))


def whole(opened: Any) -> Any:
    """A module from the family's `inputs`, (texts, tokens) each, to its `forward`, for what reads or runs a whole model."""
    import torch

    family = of_opened(opened)
    names = family.inputs(opened)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = family.network(opened)

        def forward(self, input_ids, attention_mask, token_type_ids=None):
            tensors = (input_ids, attention_mask, token_type_ids)
            return family.forward(opened, dict(zip(names, tensors, strict=False)))

    return Whole().eval()
