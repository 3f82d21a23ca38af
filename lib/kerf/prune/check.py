"""What a `prune` step needs of the model and of the steps before it; refused before torch is imported where it can be."""

from typing import Any

from kerf.config import check_pattern
from kerf.config.prune import STRUCTURES, UNITS
from kerf.core.errors import refuse
from kerf.models import architecture, coverage, registry

LEVELS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
UNIT_NAMES = {
    "depth": "blocks",
    "heads": "key and value heads of a block",
    "neurons": "neurons of a block",
}


def check(model: str, step: Any, before: list[dict]) -> None:
    """Refuse, before heavy work, a step that this model cannot take after the steps `before`."""
    quantized = any("quantize" in earlier for earlier in before)
    if step.method in UNITS and quantized:
        raise refuse("method", step.method, "a step before quantize")
    if step.method in STRUCTURES:
        check_structure(network_after(model, before), step)
    if quantized and (step.method == "sparsegpt" or step.method == "wanda" and step.sweeps):
        accepted = "magnitude or wanda with sweeps 0 after quantize: weights on a grid cannot move"
        raise refuse("method", step.method, accepted)
    if getattr(step, "allocation", "uniform") == "sensitivity":
        registry.check_family(model, "allocation: sensitivity", "encoder", "causal")
        if step.sparsity > LEVELS[-1]:
            accepted = f"at most {LEVELS[-1]} with allocation sensitivity"
            raise refuse("sparsity", step.sparsity, accepted)
    check_pattern(step, shapes_after(model, before))
    if step.method not in STRUCTURES:
        coverage.check(registry.describe(model), step, with_tables=False)


def shapes_after(model: str, before: list[dict]) -> dict[str, list[int]]:
    """[rows, columns] of every linear layer after the steps `before`."""
    if not any(step.get("prune", {}).get("method") in UNITS for step in before):
        return registry.describe(model)["linears"]
    layers = architecture.linears(network_after(model, before))
    return {name: list(layer.weight.shape) for name, layer in layers.items()}


def network_after(model: str, before: list[dict]) -> Any:
    """A network of the shapes that the steps `before` leave; its weights are the baseline's."""
    from kerf.prune import structured  # imports torch

    return structured.shrunk(registry.network(registry.open_model(model)), before)


def check_structure(net: Any, step: Any) -> None:
    """Refuse a network whose structure is not recognized, and a sparsity that removes nothing or everything."""
    from kerf.prune import structured  # imports torch

    if step.method == "depth":
        total = len(architecture.blocks(net))
        stay = total - round(step.sparsity * total)
    else:
        counts = [
            structured.count(net, rows) for rows in structured.units(net, step.method).values()
        ]
        total = min(counts)
        stay = structured.left(total, step.sparsity)
    if not 0 < stay < total:
        what = f"some of the {total} {UNIT_NAMES[step.method]} and not all; this leaves {stay}"
        raise refuse("sparsity", step.sparsity, f"a share that leaves {what}")
