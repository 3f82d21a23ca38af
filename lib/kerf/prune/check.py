"""What a `prune` step needs of the model and of the steps before it; refused before torch is imported where it can be."""

from kerf.config import check_pattern
from kerf.config.prune import STRUCTURES, UNITS, Prune
from kerf.core.errors import refuse
from kerf.models import architecture, registry

LEVELS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def check(model: str, step: Prune, before: list[dict]) -> None:
    """Refuse, before heavy work, a step that this model cannot take after the steps `before`."""
    quantized = any("quantize" in each for each in before)
    if step.method in UNITS and quantized:
        raise refuse("method", step.method, "a step before quantize")
    if step.method in STRUCTURES:
        check_structure(network_after(model, before), step)
    if quantized and (step.method == "sparsegpt" or step.method == "wanda" and step.sweeps):
        accepted = "magnitude or wanda with sweeps 0 after quantize: weights on a grid cannot move"
        raise refuse("method", step.method, accepted)
    if step.allocation == "sensitivity":
        _check_allocation(model, step)
    check_pattern(step, shapes_after(model, before))


def shapes_after(model: str, before: list[dict]) -> dict[str, list[int]]:
    """[rows, columns] of every linear layer once the steps `before` are done."""
    if not any(each.get("prune", {}).get("method") in UNITS for each in before):
        return registry.describe(model)["linears"]
    return {
        name: list(layer.weight.shape)
        for name, layer in architecture.linears(network_after(model, before)).items()
    }


def network_after(model: str, before: list[dict]):
    """A network of the shapes that the steps `before` leave; its weights are the baseline's."""
    from kerf.prune import structured

    return structured.shrunk(registry.network(registry.open_model(model)), before)


def check_structure(net, step: Prune) -> None:
    """Refuse a network that is not understood, and a share that takes nothing or all of it."""
    from kerf.prune import structured

    if step.method == "depth":
        there, stay = (
            len(architecture.blocks(net)),
            len(architecture.blocks(net)) - round(step.sparsity * len(architecture.blocks(net))),
        )
    else:
        there = min(
            structured.count(net, rows) for rows in structured.units(net, step.method).values()
        )
        stay = structured.left(there, step.sparsity)
    if not 0 < stay < there:
        what = {
            "depth": "blocks",
            "heads": "key and value heads of a block",
            "neurons": "neurons of a block",
        }[step.method]
        raise refuse(
            "sparsity",
            step.sparsity,
            f"a share that leaves some of the {there} {what} and not all; this leaves {stay}",
        )


def _check_allocation(model: str, step: Prune) -> None:
    """Refuse a reranker, and a share above all levels."""
    registry.check_kind(model, "allocation: sensitivity", "encoder", "causal")
    if step.sparsity > LEVELS[-1]:
        raise refuse("sparsity", step.sparsity, f"at most {LEVELS[-1]} with allocation sensitivity")
