"""llm-compressor's weights for a language model: python causal_with_llmcompressor.py REQUEST.json OUT_DIR, in its own environment.

A request names model (a directory), tokens (lists of equal length), method and threads, and bits and group_size
(gptq) or sparsity (wanda, sparsegpt). OUT_DIR gets weights.safetensors, the dequantized weight of every linear
layer but the head, and figures.json. The settings of gptq are those of with_llmcompressor.py, which says why;
whole decoder layers are its default for such models.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

SETTINGS = {"symmetric": False, "observer": "imatrix_mse", "actorder": "static"}


def recipe(asked: dict):
    """The modifier that was asked for."""
    if asked["method"] != "gptq":
        cut = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[asked["method"]]
        return cut(sparsity=asked["sparsity"], targets=["Linear"], ignore=["re:.*lm_head"])
    weights = {
        "num_bits": asked["bits"],
        "type": "int",
        "strategy": "group",
        "group_size": asked["group_size"],
    }
    weights |= {key: SETTINGS[key] for key in ("symmetric", "observer")}
    return GPTQModifier(
        config_groups={"all": {"targets": ["Linear"], "weights": weights}},
        ignore=["lm_head"],
        actorder=SETTINGS["actorder"],
    )


def main() -> None:
    """Compress in running order; the modifier leaves the dequantized weight in each layer."""
    asked, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(asked["threads"])
    net = AutoModelForCausalLM.from_pretrained(
        asked["model"], dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()
    head = net.get_output_embeddings()
    linears = {
        name: m
        for name, m in net.named_modules()
        if isinstance(m, torch.nn.Linear) and m is not head
    }
    tokens = torch.tensor(asked["tokens"])
    batches = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens.split(4)
    ]
    clock = time.perf_counter()
    oneshot(
        model=net,
        tokenizer=AutoTokenizer.from_pretrained(
            asked["model"], local_files_only=True, trust_remote_code=False
        ),
        dataset=DataLoader(batches, batch_size=None),
        num_calibration_samples=len(batches),
        recipe=recipe(asked),
        pipeline="sequential",
    )
    seconds = time.perf_counter() - clock
    save_file(
        {
            f"{name}.weight": layer.weight.detach().float().contiguous()
            for name, layer in linears.items()
        },
        out / "weights.safetensors",
    )
    figures = {
        "seconds": seconds,
        "version": version("llmcompressor"),
        "settings": SETTINGS if asked["method"] == "gptq" else {},
    }
    (out / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
