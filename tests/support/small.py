"""Small models of random weights: quick, and of the real kind."""

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from kerf.data import corpora
from kerf.models import registry

logging.disable_progress_bar()  # what is written here is no part of what a test looks at

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}


def write_model(folder: Path, seed: int = 0) -> Path:
    """A sentence-transformers directory of 2 layers, 64 wide."""
    origin = registry.resolve("minilm")
    folder.mkdir(parents=True)
    for path in origin.rglob("*.json"):
        (folder / path.relative_to(origin)).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(origin))
    shutil.copyfile(origin / "vocab.txt", folder / "vocab.txt")
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(
        json.dumps({**json.loads(pooling.read_text()), "word_embedding_dimension": 64})
    )
    torch.manual_seed(seed)
    config = BertConfig.from_pretrained(origin, **SIZES)
    net = BertModel(config)
    for layer in net.modules():  # random weights of 0.02 would make every sentence look the same
        if isinstance(layer, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(layer.weight, std=0.15)
    net.save_pretrained(folder)
    return folder


def with_biases(folder: Path) -> Path:
    """The model of a directory with biases that are not 0, as those of a new network are."""
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(folder / "model.safetensors")
    drawn = {
        name: 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in tensors.items()
        if name.endswith(".bias")
    }
    save_file({**tensors, **drawn}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LLAMA = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}


def write_causal(folder: Path, seed: int = 0, **options) -> Path:
    """A causal LM of 2 layers, 64 wide, grouped-query attention, with a byte tokenizer that knows 400 tokens."""
    config = LlamaConfig(
        **{
            **LLAMA,
            "vocab_size": 400,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            **options,
        }
    )
    torch.manual_seed(seed)
    net = LlamaForCausalLM(config)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(layer.weight, std=0.15)
    net.save_pretrained(folder)
    bytes_of_text = Tokenizer(BPE())
    bytes_of_text.pre_tokenizer, bytes_of_text.decoder = (
        ByteLevel(add_prefix_space=False),
        ByteLevelDecoder(),
    )
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], initial_alphabet=ByteLevel.alphabet()
    )
    bytes_of_text.train_from_iterator(corpora.documents("news", "calibration")[:20], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=bytes_of_text, bos_token="<end>", eos_token="<end>"
    ).save_pretrained(folder)
    return folder


def write_reranker(folder: Path, seed: int = 0) -> Path:
    """A cross-encoder directory of 2 layers, 64 wide, as sentence-transformers writes it; its score is the logit."""
    torch.manual_seed(seed)
    opened = CrossEncoder(
        str(write_model(folder.with_name(f"{folder.name}-encoder"), seed)),
        num_labels=1,
        activation_fn=torch.nn.Identity(),
    )
    torch.nn.init.normal_(opened.model.classifier.weight, std=0.5)
    opened.save_pretrained(str(folder), create_model_card=False)
    return folder


def byte_tokenizer(**options) -> PreTrainedTokenizerFast:
    """A byte tokenizer of 400 tokens, 0 to 2 being <s>, <pad> and </s>, which stand around and behind every text."""
    made = Tokenizer(BPE())
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpora.documents("news", "calibration")[:20], trainer)
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        **{"model_max_length": 512, "padding_side": "right", **options},
    )


GEMMA = {  # every second block has a sliding window; EmbeddingGemma is bidirectional
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "sliding_window": 32,
    "sliding_window_pattern": 2,
}
SPECIAL = {"vocab_size": 400, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
FAMILIES = {  # class, and what its configuration has beside SIZES and SPECIAL
    "Bert": {"max_position_embeddings": 300},
    "ModernBert": {
        "cls_token_id": 0,
        "sep_token_id": 2,
        "local_attention": 32,
        "max_position_embeddings": 512,
        "num_hidden_layers": 4,
    },
    "XLMRoberta": {"max_position_embeddings": 302},
    "MPNet": {"max_position_embeddings": 302},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512},
    "T5Encoder": {"d_model": 64, "d_kv": 32, "d_ff": 128, "feed_forward_proj": "gated-gelu"},
    "Gemma3Text": GEMMA,
    "Gemma3Text-bidirectional": {**GEMMA, "use_bidirectional_attention": True},
}


def write_family(folder: Path, family: str, reranker: bool = False, **options) -> Path:
    """An encoder of one of FAMILIES, or a reranker, as sentence-transformers writes it; Qwen3 pads on the left and takes the last token,
    T5 and Gemma 3 have a dense layer behind the mean of the tokens."""
    raw, decoder = folder.with_name(f"{folder.name}-raw"), family == "Qwen3"
    shape, family = FAMILIES[family], family.partition("-")[0]
    config = getattr(transformers, f"{family.removesuffix('Encoder')}Config")(
        **{**SIZES, **SPECIAL, **shape, "num_labels": 1}
    )
    torch.manual_seed(0)
    net = getattr(
        transformers, f"{family}ForSequenceClassification" if reranker else f"{family}Model"
    )(config)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(layer.weight, std=0.15)
    net.save_pretrained(raw)
    byte_tokenizer(**{"padding_side": "left" if decoder else "right", **options}).save_pretrained(
        raw
    )
    if reranker:
        opened = CrossEncoder(str(raw), activation_fn=torch.nn.Identity())
    else:
        pooling = Pooling(SIZES["hidden_size"], pooling_mode="lasttoken" if decoder else "mean")
        dense = [Dense(64, 32)] if family in ("T5Encoder", "Gemma3Text") else []
        opened = SentenceTransformer(
            modules=[Transformer(str(raw)), pooling, *dense, Normalize()], device="cpu"
        )
    opened.save_pretrained(str(folder), create_model_card=False)
    return folder


TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}answer:"
)


def write_yes_no(folder: Path, seed: int = 0) -> Path:
    """A reranker whose score is the difference of a Qwen3's logits of yes and no after its chat template."""
    raw, tokenizer = folder.with_name(f"{folder.name}-raw"), byte_tokenizer(padding_side="left")
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.chat_template = TEMPLATE
    config = {**SIZES, **SPECIAL, **FAMILIES["Qwen3"], "vocab_size": len(tokenizer)}
    torch.manual_seed(seed)
    net = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**config, tie_word_embeddings=True)
    )
    for layer in net.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(layer.weight, std=0.15)
    net.save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    CrossEncoder(str(raw)).save_pretrained(str(folder), create_model_card=False)
    return folder
