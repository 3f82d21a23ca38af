"""The families of models. What differs between them stands in one file a family, under the same names:

NAME and CALLED ("a reranker"); takes(architecture, folder): whether a model is of this family, by the class that its
configuration names; opens_as(opened): whether an opened one is; EVALUATION: the module that says how it is measured, READS: the keys of `evaluation`
that it reads;
open_folder(folder, device), with_weights(folder, class_name, weights, device): the model, ready to use;
network(opened): the part whose layers are compressed; batches(opened, spec): calibration text as the
network takes it; held_batches(opened, spec): the same of text outside the sample, check_held_back(folder,
spec): refused where there is none; describe_sample(folder, spec): what the sample is, in a line; sample_texts(folder,
spec): its text, refused where there is too little; reader(opened), output(opened, reader, texts), output_diff(reader, before,
after): its tokenizer, its output for a pair of texts or a prompt such as EXAMPLES, and how two answers differ, in rows. What
a real kernel can run also has inputs(opened), names of what the network takes, and forward(opened, batch), what the model
makes of it.
"""

import json
from pathlib import Path
from types import ModuleType

from kerf.core.registry import Registry
from kerf.models.families import causal, cross_encoder, encoder

FAMILIES = Registry("kerf.families", encoder, causal, cross_encoder)


def name_of(folder: Path) -> str:
    """Name of the family of the model in `folder`, by its configuration."""
    return of(folder).NAME


def of(folder: Path) -> ModuleType:
    """The family of the model in `folder`: the last in the registry that takes it, since the first takes every one."""
    config = folder / "config.json"
    architectures = (
        json.loads(config.read_text()).get("architectures") if config.is_file() else None
    ) or [""]
    return next(
        family
        for family in reversed(list(FAMILIES.values()))
        if family.takes(architectures[0], folder)
    )


def of_opened(opened) -> ModuleType:
    """The family of an opened model."""
    return next(family for family in reversed(list(FAMILIES.values())) if family.opens_as(opened))


def whole(opened):
    """A module of the kind's `inputs`, (texts, tokens) each, to its `answers`, for what reads or runs a whole model."""
    import torch

    kind = of_opened(opened)
    names = kind.inputs(opened)

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = kind.network(opened)

        def forward(self, input_ids, attention_mask, token_type_ids=None):
            given = (input_ids, attention_mask, token_type_ids)
            return kind.forward(opened, dict(zip(names, given, strict=False)))

    return Whole().eval()
