"""What each layer costs at each width, with that layer alone quantized and everything else in float.

Every linear layer, and the word embeddings, at every width of WIDTHS: quantized as the step would (GPTQ on the float model's
second moments, or rounded to nearest), put into the float model, and the model's embeddings of held-out calibration text
compared with the float ones: 1 - mean cosine. The bytes of a layer are those of its packed tensor after compression.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kerf.calibration.allocation import allocate
from kerf.calibration.candidate import StepContext
from kerf.calibration.heldout import embed, mean_cosine
from kerf.calibration.layer_sensitivity import cost_per_layer, second_moments
from kerf.config import Calibration
from kerf.config.methods import METHODS
from kerf.core.cache import artifact
from kerf.core.errors import refuse
from kerf.models import architecture, registry
from kerf.models.families import encoder
from kerf.quantize.compress import one_layer
from kerf.tensors import parquet

WIDTHS = (1.6, 2, 3, 4, 5, 6, 8)
GROWTH = 1.012  # bytes of a layer that compensates for those before it, over its bytes alone (about, on MiniLM)


def sensitivity(
    model: str, step: Any, calibration: Calibration, source: Path | str | None = None
) -> Path:
    """Artifact with sensitivity.json: layers, widths, costs and bytes (layers, widths), bytes of the rest by dtype.

    source: a pruned candidate that takes the float model's place. Raises InputError when the calibration text leaves no
    held-out sentences.
    """
    registry.check_family(model, "bits: mixed", "encoder")
    unlimited = {"bits": 8, "budget_bytes": None, "min_cosine": None}
    plain = step.model_copy(
        update={**unlimited, "embeddings": "same", "unquantized_dtype": "float32"}
    )
    context = StepContext("quantize", model, plain, calibration, Path(source) if source else None)
    return artifact(
        "sensitivity",
        {**context.key(), "widths": WIDTHS},
        lambda folder: _make(context, folder),
        also=METHODS[step.method].modules(),
    )


def read(folder: Path) -> dict:
    """The artifact's sensitivity.json."""
    return json.loads((folder / "sensitivity.json").read_text())


def assign(table: dict, step: Any, limit: float) -> tuple[dict[str, float], dict]:
    """Bits of every layer under the limit (bytes of the file, or 1 - cosine), and the predicted cosine and bytes.

    step: parameters of a method with mixed widths. Raises InputError when not even the extreme widths meet the limit, with what they reach.
    """
    costs, sizes = np.array(table["costs"]).clip(min=0), GROWTH * np.array(table["bytes"], float)
    rest, widths = table["rest_bytes"][step.unquantized_dtype], table["widths"]
    fixed = [step.embeddings != "same" and name in table["embeddings"] for name in table["layers"]]
    if any(fixed):
        if step.embeddings not in widths:
            accepted = f"same, or one of {', '.join(map(str, widths))} with mixed bits"
            raise refuse("embeddings", step.embeddings, accepted)
        column = [widths.index(step.embeddings)]  # as if no other width had been measured
        costs[fixed], sizes[fixed] = costs[fixed][:, column], sizes[fixed][:, column]
    budget, most = (limit - rest, None) if step.budget_bytes else (None, limit)
    assignment = allocate(costs, sizes, budget=budget, most=most)
    if assignment is None and step.budget_bytes:
        least = f"at least about {sizes.min(1).sum() + rest:.0f}: every layer at its smallest"
        raise refuse("budget_bytes", step.budget_bytes, least)
    if assignment is None:
        best = f"at most about {1 - costs.min(1).sum():.4f}: every layer at its best"
        raise refuse("min_cosine", step.min_cosine, best)
    chosen, cost, size = assignment
    bits = {
        name: step.embeddings if is_fixed else widths[index]
        for name, is_fixed, index in zip(table["layers"], fixed, chosen, strict=True)
    }
    return bits, {"cosine": 1 - cost, "bytes": size + rest}


def held_out_cosine(context: StepContext, candidate: Path) -> float:
    """Mean cosine of the candidate's embeddings to the float model's on held-out calibration text."""
    baseline = registry.open_model(context.model)
    batches = encoder.held_batches(baseline, context.calibration)
    reference = embed(baseline, batches)
    compressed = context.open()
    weights = parquet.read_weights(candidate / parquet.WEIGHTS)
    registry.network(compressed).load_state_dict(weights, strict=False)
    return mean_cosine(embed(compressed, batches), reference)


def _make(context: StepContext, folder: Path) -> dict:
    started = time.perf_counter()
    opened = context.open()
    net = registry.network(opened)
    embeddings = list(architecture.embeddings(net))
    names = [*embeddings, *architecture.linears(net)]

    def widths_of(
        name: str, module: torch.nn.Module, second: Tensor | None
    ) -> Iterator[tuple[Tensor, int]]:
        weight: Any = module.weight
        mask = weight.data != 0 if context.source and name not in embeddings else None
        for width in WIDTHS:
            step = context.step.model_copy(update={"bits": width})
            quantized = one_layer(name, module, step, second, mask)
            yield quantized.dequantize(), parquet.row_bytes(quantized)

    second = second_moments(context, opened)
    costs = cost_per_layer(opened, names, widths_of, context.calibration, second)
    table = {"layers": names, "embeddings": embeddings, "widths": list(WIDTHS), **costs}
    quantized = {f"{name}.weight" for name in names}
    rest = [value for name, value in net.state_dict().items() if name not in quantized]
    halves = [value.half() if value.is_floating_point() else value for value in rest]
    table["rest_bytes"] = {
        "float32": sum(map(parquet.row_bytes, rest)),
        "float16": sum(map(parquet.row_bytes, halves)),
    }
    (folder / "sensitivity.json").write_text(json.dumps(table))
    return {"seconds": time.perf_counter() - started}
