"""GPTQModel reads a GPTQ checkpoint: python read_with_gptqmodel.py CHECKPOINT TOKENS.json OUT_DIR, in its own environment.

OUT_DIR gets weights.safetensors, the weight (rows, columns) of every quantized layer as its own kernel
class dequantizes it, and logits.safetensors for the tokens (one list).
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

os.environ.setdefault(
    "GPTQMODEL_CPU_WORKERS", "2"
)  # read on import; with its default it dies on two cores
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.nn_modules.qlinear import BaseQuantLinear

folder, tokens, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
model = GPTQModel.load(
    folder, backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16, trust_remote_code=False
)
layers = {
    name: module
    for name, module in model.model.named_modules()
    if isinstance(module, BaseQuantLinear)
}
with torch.no_grad():
    logits = model.model(torch.tensor([tokens])).logits[0].float()
    weights = {}
    for name, module in layers.items():
        module.scales = module.scales.float()  # the product in float32, as the file's numbers say
        weights[name] = module.dequantize_weight().float().T.contiguous()
save_file(
    {f"{name}.weight": weight for name, weight in weights.items()}, out / "weights.safetensors"
)
save_file({"logits": logits}, out / "logits.safetensors")
Path(out, "figures.json").write_text(
    json.dumps({"peer": "GPTQModel", "version": version("gptqmodel"), "layers": len(layers)})
)
