"""AutoGPTQ reads a GPTQ checkpoint: python read_with_autogptq.py CHECKPOINT TOKENS.json OUT_DIR, in its own environment.

OUT_DIR gets what read_with_gptqmodel.py writes. A layer's weight is what its kernel makes of the unit vectors.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from auto_gptq import AutoGPTQForCausalLM
from safetensors.torch import save_file

folder, tokens, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
model = AutoGPTQForCausalLM.from_quantized(
    folder,
    device="cpu",
    use_safetensors=True,
    trust_remote_code=False,
    use_triton=False,
    disable_exllama=True,
    disable_exllamav2=True,
    torch_dtype=torch.float32,
)
layers = {
    name: module for name, module in model.model.named_modules() if hasattr(module, "qweight")
}
with torch.no_grad():
    logits = model.model(torch.tensor([tokens])).logits[0].float()
    weights = {}
    for name, module in layers.items():
        module.scales = module.scales.float()
        rows = module(torch.eye(module.infeatures))
        weights[name] = (rows - (0 if module.bias is None else module.bias)).float().T.contiguous()
save_file(
    {f"{name}.weight": weight for name, weight in weights.items()}, out / "weights.safetensors"
)
save_file({"logits": logits}, out / "logits.safetensors")
Path(out, "figures.json").write_text(
    json.dumps({"peer": "AutoGPTQ", "version": version("auto-gptq"), "layers": len(layers)})
)
