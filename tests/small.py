"""A small encoder of random weights with the embedded model's tokenizer: quick, and of the real kind."""

import json
import shutil
from pathlib import Path

import torch
from kerf import models
from transformers import BertConfig, BertModel

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
