"""What each layer costs at each width, with it alone cut and everything else in float.

Every linear layer, and the word embeddings, at every width of WIDTHS: quantized as the step would (GPTQ on
the float model's second moments, or rounded to nearest), put into the float model, and the model's
embeddings of held-back calibration text compared with the float ones: 1 - mean cosine. Its bytes are
those of the packed tensor after the store's compression.
"""

import json
import time
from pathlib import Path

import numpy as np

from kerf.calibration import activations
from kerf.calibration.allocation import allocate
from kerf.calibration.layer_sensitivity import cost_per_layer, second_moments
from kerf.config import Calibration
from kerf.config.methods import METHODS
from kerf.config.quantize import Quantize
from kerf.core.cache import artifact
from kerf.core.errors import refuse
from kerf.models import architecture, registry
from kerf.models.families import encoder
from kerf.tensors import parquet

WIDTHS = (1.6, 2, 3, 4, 5, 6, 8)
SWELLING = 1.012  # bytes of a layer that makes up for those before it, over its bytes alone: about, on MiniLM


def sensitivity(
    model: str,
    step: Quantize,
    calibration: Calibration,
    source: str | Path = "",
) -> Path:
    """Artifact with sensitivity.json: layers, widths, costs and bytes (layers, widths), bytes of the rest by dtype.

    source: a pruned candidate that is cut in the float model's place. Raises InputError when the calibration text
    leaves no sentences to hold back.
    """
    registry.check_kind(model, "bits: mixed", "encoder")
    without = {
        "bits": 8,
        "budget_bytes": None,
        "min_cosine": None,
        "embeddings": "same",
        "unquantized_dtype": "float32",
    }
    alone = step.model_copy(update=without)
    key = {
        "step": alone.model_dump(),
        "calibration": activations.key_of(model, calibration),
        "widths": WIDTHS,
        "source": registry.weights_digest(Path(source)) if source else None,
    }
    return artifact(
        "sensitivity",
        key,
        lambda folder: _make(folder, model, alone, calibration, source),
        also=METHODS[step.method].modules(),
    )


def read(folder: Path) -> dict:
    """The artifact's sensitivity.json."""
    return json.loads((folder / "sensitivity.json").read_text())


def assign(table: dict, step: Quantize, limit: float) -> tuple[dict[str, float], dict]:
    """Bits of every layer under the limit (bytes of the file, or 1 - cosine), and the sums that go with them.

    Raises InputError when not even the extreme widths meet it, with what they reach.
    """
    costs, sizes = np.array(table["costs"]).clip(min=0), SWELLING * np.array(table["bytes"], float)
    rest, widths = table["rest_bytes"][step.unquantized_dtype], table["widths"]
    fixed = np.array(
        [step.embeddings != "same" and name in table["embeddings"] for name in table["layers"]]
    )
    if fixed.any():
        if step.embeddings not in widths:
            raise refuse(
                "embeddings",
                step.embeddings,
                f"same, or one of {', '.join(map(str, widths))} with mixed bits",
            )
        place = widths.index(step.embeddings)  # as if no other width had been tried
        costs[fixed], sizes[fixed] = costs[fixed][:, [place]], sizes[fixed][:, [place]]
    within = {"budget": limit - rest} if step.budget_bytes else {"most": limit}
    found = allocate(costs, sizes, **within)
    if found is None:
        if step.budget_bytes:
            least = sizes.min(1).sum() + rest
            raise refuse(
                "budget_bytes",
                step.budget_bytes,
                f"at least about {least:.0f}: every layer at its smallest",
            )
        raise refuse(
            "min_cosine",
            step.min_cosine,
            f"at most about {1 - costs.min(1).sum():.4f}: every layer at its best",
        )
    chosen, cost, size = found
    assigned = [
        step.embeddings if held else widths[index]
        for held, index in zip(fixed, chosen, strict=True)
    ]
    return dict(zip(table["layers"], assigned, strict=True)), {
        "cosine": 1 - cost,
        "bytes": size + rest,
    }


def held_fidelity(
    model: str, candidate: Path, calibration: Calibration, source: str | Path = ""
) -> float:
    """Mean cosine of a candidate's embeddings to the float model's on the text held back; source: what it was cut from."""
    from kerf.calibration.heldout import embed, mean_cosine

    opened = registry.open_model(model)
    batches = encoder.held_batches(opened, calibration)
    aim = embed(opened, batches)
    cut = registry.open_source(model, source)
    registry.network(cut).load_state_dict(
        parquet.read_weights(candidate / parquet.WEIGHTS), strict=False, assign=True
    )
    return mean_cosine(embed(cut, batches), aim)


def _make(folder, model, step, calibration, source) -> dict:
    from kerf.quantize.layers import one_layer

    clock = time.perf_counter()
    opened = registry.open_source(model, source)
    words = list(architecture.embeddings(registry.network(opened)))
    names = [*words, *architecture.linears(registry.network(opened))]

    def cuts(name, layer, moments):
        kept = layer.weight.data != 0 if source and name not in words else None
        for width in WIDTHS:
            quantized = one_layer(
                name, layer, step.model_copy(update={"bits": width}), moments, kept
            )
            yield quantized.dequantize(), parquet.row_bytes(quantized)

    second = second_moments(opened, model, source, calibration)
    found = cost_per_layer(opened, names, cuts, calibration, second)
    table = {"layers": names, "embeddings": words, "widths": list(WIDTHS), **found}
    rest = [
        value
        for name, value in registry.network(opened).state_dict().items()
        if name not in {f"{name}.weight" for name in names}
    ]
    halves = [value.half() if value.is_floating_point() else value for value in rest]
    table["rest_bytes"] = {
        "float32": sum(map(parquet.row_bytes, rest)),
        "float16": sum(map(parquet.row_bytes, halves)),
    }
    (folder / "sensitivity.json").write_text(json.dumps(table))
    return {"seconds": time.perf_counter() - clock}
