"""The kinds of models. What differs between them stands in one file a kind, under the same names:

open_folder(folder, device), with_weights(folder, class_name, weights, device): the model, ready to use;
network(opened): the part whose layers are compressed; batches(opened, spec): calibration text as the
network takes it; held_batches(opened, spec): the same of text outside the sample, check_held_back(folder,
spec): refused where there is none; about(folder, spec): what the sample is, in a line; sample_texts(folder,
spec): its text, refused where there is too little; reader(opened), answer(opened, reader, texts), told(reader, before,
after): its tokenizer, its answer to a pair of texts or a prompt such as EXAMPLES, and how two answers differ, in rows. What
a real kernel can run also has inputs(opened), names of what the network takes, and answers(opened, batch), what the model
makes of it.
"""

import json
from pathlib import Path
from types import ModuleType

from kerf.models.families import causal, cross_encoder, encoder

KINDS = {"encoder": encoder, "causal": causal, "reranker": cross_encoder}
# Classes of causal language models that do not end in ForCausalLM.
LANGUAGE_MODELS = ("GPT2LMHeadModel", "OpenAIGPTLMHeadModel", "CTRLLMHeadModel")
CALLED = {"encoder": "an encoder", "causal": "a causal language model", "reranker": "a reranker"}


def name_of(folder: Path) -> str:
    """Name of the kind of the model in `folder`, by its configuration."""
    config = folder / "config.json"
    architectures = (json.loads(config.read_text()).get("architectures") if config.is_file() else None) or [""]
    if architectures[0].endswith("ForSequenceClassification"):
        return "reranker"
    causal_head = architectures[0].endswith(("ForCausalLM", *LANGUAGE_MODELS)) and not (folder / "modules.json").is_file()
    return "causal" if causal_head else "encoder"


def of(folder: Path) -> ModuleType:
    """The kind of the model in `folder`."""
    return KINDS[name_of(folder)]


def of_opened(opened) -> ModuleType:
    """The kind of an opened model."""
    from sentence_transformers import CrossEncoder
    from transformers import PreTrainedModel

    return causal if isinstance(opened, PreTrainedModel) else cross_encoder if isinstance(opened, CrossEncoder) else encoder


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
            return kind.answers(opened, dict(zip(names, given, strict=False)))

    return Whole().eval()
