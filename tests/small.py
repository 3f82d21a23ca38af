"""Small models of random weights: quick, and of the real kind."""

import json
import shutil
from pathlib import Path

import torch
from kerf import models, texts
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def write_model(folder: Path, seed: int = 0) -> Path:
    """A sentence-transformers directory of 2 layers, 64 wide."""
    origin = models.resolve("minilm")
    folder.mkdir(parents=True)
    for path in origin.rglob("*.json"):
        (folder / path.relative_to(origin)).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(origin))
    shutil.copyfile(origin / "vocab.txt", folder / "vocab.txt")
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "word_embedding_dimension": 64}))
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
    drawn = {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in tensors.items() if name.endswith(".bias")}
    save_file({**tensors, **drawn}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LLAMA = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 128, "max_position_embeddings": 512}  # fmt: skip


def write_causal(folder: Path, seed: int = 0, **options) -> Path:
    """A causal LM of 2 layers, 64 wide, grouped-query attention, with a byte tokenizer that knows 400 tokens."""
    config = LlamaConfig(**{**LLAMA, "vocab_size": 400, "tie_word_embeddings": True, "bos_token_id": 0,
                            "eos_token_id": 0, **options})  # fmt: skip
    torch.manual_seed(seed)
    net = LlamaForCausalLM(config)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(layer.weight, std=0.15)
    net.save_pretrained(folder)
    bytes_of_text = Tokenizer(BPE())
    bytes_of_text.pre_tokenizer, bytes_of_text.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=400, special_tokens=["<end>"], initial_alphabet=ByteLevel.alphabet())
    bytes_of_text.train_from_iterator(texts.documents("news", "calibration")[:20], trainer)
    PreTrainedTokenizerFast(tokenizer_object=bytes_of_text, bos_token="<end>", eos_token="<end>").save_pretrained(folder)
    return folder


def write_reranker(folder: Path, seed: int = 0) -> Path:
    """A cross-encoder directory of 2 layers, 64 wide, as sentence-transformers writes it; its score is the logit."""
    torch.manual_seed(seed)
    opened = CrossEncoder(str(write_model(folder.with_name(f"{folder.name}-encoder"), seed)), num_labels=1, activation_fn=torch.nn.Identity())
    torch.nn.init.normal_(opened.model.classifier.weight, std=0.5)
    opened.save_pretrained(str(folder), create_model_card=False)
    return folder
