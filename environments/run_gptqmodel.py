"""GPTQModel on a causal language model: python run_gptqmodel.py REQUEST.json OUT_DIR, in its own environment.

A request names model (a directory), tokens (lists of equal length), bits, group_size, sym, act_order and
threads. OUT_DIR gets the checkpoint and figures.json. Nothing of Kerf is imported, since this environment
does not have it.
"""

import json
import os
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

asked, out = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
os.environ["GPTQMODEL_CPU_WORKERS"] = str(
    max(2, asked["threads"])
)  # read on import; with its default it dies on two cores

import torch  # noqa: E402
from gptqmodel import GPTQModel, QuantizeConfig  # noqa: E402

torch.set_num_threads(asked["threads"])
# Where it has a default (damping, order of the columns without act_order), that is what is measured.
settings = {"bits": asked["bits"], "group_size": asked["group_size"], "sym": asked["sym"]}
if asked["act_order"]:
    settings |= {"desc_act": True, "act_group_aware": False, "static_groups": True}
elif asked["group_size"] == -1:
    settings |= {"act_group_aware": False}  # it needs groups
model = GPTQModel.load(
    asked["model"],
    QuantizeConfig(**settings),
    device="cpu",
    dtype=torch.float32,
    trust_remote_code=False,
)
sample = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in asked["tokens"]]
clock = time.perf_counter()
model.quantize(sample, batch_size=4)
seconds = time.perf_counter() - clock
model.save(out)
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
figures = {
    "seconds": seconds,
    "peak_rss_bytes": peak,
    "version": version("gptqmodel"),
    "settings": settings,
}
Path(out, "figures.json").write_text(json.dumps(figures))
