"""Which of a model's parameters a step changes, by component, and what stays in float with the reason.

A step means the matrices that hold linear maps: word embeddings and heads where it changes them, all others always. Positions,
biases and normalization stay in float and are counted. Less than LEAST of what a step means is refused before heavy work.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kerf.core.errors import refuse
from kerf.models import architecture

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 0.95  # of the parameters in the matrices that a step means
SHOWN = 4  # names in a refusal
ORDER = ("embeddings", "attention", "feed-forward", "experts", "convolutions", "head", "other")
# Components by the classes and names of the modules around a parameter, tried in this order.
COMPONENTS = {
    "experts": "[Ee]xpert|Router",
    "attention": "Attention|Attn|attn",
    "feed-forward": r"MLP|Mlp|mlp|FeedForward|feed_forward|ffn|\bfc\d|Intermediate|Output |DenseActDense",
}
VECTOR, POSITION = "biases and normalization", "positions and types of tokens"
ON_PURPOSE, ONE_ROW = "left in float by the step", "a head of one row"
EXCLUDED = (VECTOR, POSITION, ON_PURPOSE, ONE_ROW)  # what no step means
LEFT, CONVOLUTION = "not changed by the step", "a convolution"
BEHIND = "a module behind the network, which no method changes"
ROUTER, UNKNOWN = "routes tokens to experts", "no layer that Kerf's methods know"


class Part(NamedTuple):
    """A parameter: its component, and the bits it was changed to, or else the reason why it was not."""

    name: str
    parameters: int
    component: str
    bits: float | None
    reason: str
    meant: bool


def coverage(
    opened: Any, net: Any, bits: dict[str, float], spared: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What results.json holds as `coverage`: matrix_parameters that the step means, how many of them it changed, and their
    share; a row a component; and what stays float, names alike in one row.

    opened: the model, net: its network; bits: of each changed layer; spared: layers that the step does not mean, with reasons.
    """
    parts = _parts(opened, net, bits, spared or {})
    meant = [part for part in parts if part.meant]
    total = sum(part.parameters for part in meant)
    changed = sum(part.parameters for part in meant if part.bits is not None)
    unchanged: Counter[tuple[str, str]] = Counter()
    for part in (part for part in parts if part.bits is None):
        name = "all vectors" if part.reason == VECTOR else re.sub(r"\b\d+\b", "*", part.name)
        unchanged[name, part.reason] += part.parameters
    return {
        "changed": changed,
        "matrix_parameters": total,
        "share": changed / total if total else 1.0,
        "components": list(_components(parts)),
        "float": [
            {"name": name, "parameters": count, "reason": reason}
            for (name, reason), count in unchanged.most_common()
        ],
    }


def _components(parts: list[Part]) -> Iterator[dict[str, Any]]:
    """A row for each component: its parameters, how many of them were changed, and to how many bits on average."""
    for name in ORDER:
        own = [part for part in parts if part.component == name]
        changed = [(part.bits, part.parameters) for part in own if part.bits is not None]
        if own:
            count = sum(parameters for _, parameters in changed)
            bits = sum(bits * parameters for bits, parameters in changed)
            row = {"component": name, "parameters": sum(part.parameters for part in own)}
            yield {**row, "changed": count, "bits": bits / count if count else None}


def _parts(opened: Any, net: Any, bits: dict[str, float], spared: Mapping[str, str]) -> list[Part]:
    """Every parameter of an opened model, those of its network by their names there."""
    tables, linears = architecture.embeddings(net), architecture.linears(net)
    layers = {id(layer.weight): name for name, layer in {**linears, **tables}.items()}
    own, modules = {id(p): name for name, p in net.named_parameters()}, dict(net.named_modules())
    parts = []
    for name, parameter in opened.named_parameters():
        name, layer = own.get(id(parameter), name), layers.get(id(parameter), "")
        path = [modules.get(name[: dot.start()]) for dot in re.finditer(r"\.", name)]
        context = " ".join([*(type(module).__name__ for module in path), name])
        owner = path[-1] if path else net
        if layer in bits:
            reason = ""
        elif layer:
            reason = spared.get(layer, ON_PURPOSE if layer in tables else LEFT)
        else:
            reason = _reason(parameter, owner, context)
            if reason == UNKNOWN and id(parameter) not in own:
                reason = BEHIND
        component = _component(owner, context, layer in tables and owner is not _words(net))
        meant = reason not in (*EXCLUDED, spared.get(layer))
        parts.append(Part(name, parameter.numel(), component, bits.get(layer), reason, meant))
    return parts


def _words(net: Any) -> Any:
    return net.get_input_embeddings()


def _reason(parameter: Tensor, owner: Any, context: str) -> str:
    """Why no method changes a parameter of the module `owner`."""
    import torch

    if parameter.numel() == max(parameter.shape, default=1):
        return ONE_ROW if isinstance(owner, torch.nn.Linear) and parameter.ndim > 1 else VECTOR
    if isinstance(owner, torch.nn.Embedding) or "position" in context:
        return POSITION
    if isinstance(owner, torch.nn.modules.conv._ConvNd):
        return CONVOLUTION
    return ROUTER if "Router" in context else UNKNOWN


def _component(owner: Any, context: str, is_head: bool) -> str:
    import torch

    for name, pattern in COMPONENTS.items():
        if re.search(pattern, context) and not isinstance(owner, torch.nn.Embedding):
            return name
    if isinstance(owner, torch.nn.Embedding):
        return "embeddings"
    if isinstance(owner, torch.nn.modules.conv._ConvNd):
        return "convolutions"
    one_row = isinstance(owner, torch.nn.Linear) and owner.out_features == 1
    return "head" if is_head or one_row else "other"


def check(description: dict[str, Any], step: Any, with_tables: bool) -> None:
    """Refuse a step that would change less than LEAST of what it means; with_tables: word embeddings and heads too.

    description: of the model, as `registry.describe` returns it.
    """
    reach = description["coverage"]
    tables = sum(rows * columns for rows, columns in description["embeddings"].values())
    extra = tables if with_tables else 0
    changed, total = reach["changed"] + extra, reach["matrix_parameters"] + extra
    if step.allow_partial or changed >= LEAST * total:
        return
    rows = [row for row in reach["float"] if row["reason"] not in EXCLUDED]
    named = [f"{row['name']} ({row['parameters']:,}: {row['reason']})" for row in rows[:SHOWN]]
    rest = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    stay = f"{total - changed:,} of {total:,} parameters in matrices would stay float"
    raise refuse("allow_partial", False, f"true for this model: {stay}: {', '.join(named)}{rest}")
