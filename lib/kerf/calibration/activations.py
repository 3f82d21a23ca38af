"""Calibration: statistics of every layer's input on real text, in the float model.

One pass over the text, a group of layers at a time, so that memory grows with neither layers nor batches. Layers that read the
same tensor (query, key and value) form a group with one set of statistics; padding does not count. Kept per group: second
moments X^T X / tokens, the range of every channel, and outlier figures, which tell which layers will be hard to quantize.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kerf.calibration.hessian import add_second_moments, complete
from kerf.calibration.sequential import layer_inputs, rows
from kerf.config import Calibration
from kerf.core.cache import artifact, meta
from kerf.data import corpora
from kerf.models import architecture, families, registry
from kerf.models.hooks import attached, on_inputs


@dataclass
class Moments:
    """Running statistics of one input with `features` channels."""

    names: list[str]
    second: Tensor  # (features, features), sum of x x^T
    fourth: Tensor  # (features,), sum of x^4
    minimum: Tensor
    maximum: Tensor
    tokens: int = 0

    @classmethod
    def of(cls, names: list[str], inputs: Tensor) -> "Moments":
        """Empty statistics of the channels and on the device of `inputs` (tokens, features)."""
        features = inputs.shape[1]
        zeros, second = inputs.new_zeros(features), inputs.new_zeros(features, features)
        return cls(names, second, zeros, zeros + torch.inf, zeros - torch.inf)

    def add(self, inputs: Tensor) -> None:
        """Add inputs (tokens, features)."""
        if not len(inputs):  # an expert that no token was routed to
            return
        add_second_moments(self.second, inputs)
        self.fourth = self.fourth + inputs.square().square_().sum(0)
        self.minimum = torch.minimum(self.minimum, inputs.amin(0))
        self.maximum = torch.maximum(self.maximum, inputs.amax(0))
        self.tokens += len(inputs)

    def figures(self) -> dict:
        """Outlier figures: what makes rounding the weights of this input expensive."""
        power = self.second.diagonal()
        mean_square = float(power.mean()) / self.tokens
        peak = float(torch.maximum(-self.minimum, self.maximum).max())
        top = power.sort(descending=True).values[: max(1, len(power) // 100)]
        fourth = float(self.fourth.mean()) / self.tokens
        return {
            "features": len(power),
            "peak_over_rms": peak / mean_square**0.5 if mean_square else 0.0,
            "kurtosis": fourth / mean_square**2 if mean_square else 0.0,
            "top_1_percent_share": float(top.sum() / power.sum()) if mean_square else 0.0,
            "dead": int((power == 0).sum()),
        }


def calibrate(model: str, spec: Calibration) -> Path:
    """Artifact with the statistics of `model` on the text that `spec` names.

    A safetensors file per group holds second/<group>, minimum/<group> and maximum/<group>; meta.json's result lists the
    groups in the order they run. Raises InputError for text or models that cannot be used.
    """
    return artifact("calibration", key_of(model, spec), lambda folder: _make(folder, model, spec))


def key_of(model: str, spec: Calibration) -> dict:
    """What the statistics depend on: the model's weights, the parameters and the text."""
    weights = registry.weights_digest(registry.resolve(model))
    return {"model": weights, "spec": spec.key(), "texts": corpora.digest(spec.texts)}


def _make(folder: Path, model: str, spec: Calibration) -> dict:
    import sentence_transformers  # noqa: F401  so that the import is not measured

    groups: list[dict] = []
    started = time.perf_counter()
    opened = registry.open_model(model)
    batches = families.of_opened(opened).batches(opened, spec)
    for group in collect(registry.network(opened), batches):
        name = group.names[0]
        tensors = {
            f"second/{name}": group.second / group.tokens,
            f"minimum/{name}": group.minimum,
            f"maximum/{name}": group.maximum,
        }
        tensors = {key: tensor.cpu() for key, tensor in tensors.items()}
        save_file(tensors, folder / f"{len(groups):04}.safetensors")
        groups.append({"names": group.names, "tokens": group.tokens, **group.figures()})
    seconds = time.perf_counter() - started
    return {"groups": groups, "texts": spec.samples, "calibrate_seconds": seconds}


def collect(net: Any, batches: list[dict]) -> Iterator[Moments]:
    """Statistics of every group of linear layers that share an input and see any token, in the order they run; last those of
    layers that run several times, over all calls."""
    if architecture.is_table(net):
        yield _of_table(net, batches)
        return
    groups, several = groups_of(net, batches[0]), called_again(net, batches[0])
    again = [group for group in groups if group[0] in several]
    for names, inputs in layer_inputs(net, [g for g in groups if g not in again], batches):
        moments = None
        for batch in inputs:
            moments = moments or Moments.of(names, batch)
            moments.add(batch)
        assert moments is not None  # a group is yielded only where a batch reaches it
        complete(moments.second, names[0])
        if moments.tokens:
            yield moments
    yield from all_calls(net, again, batches)


def all_calls(net: Any, groups: list[list[str]], batches: list[dict]) -> list[Moments]:
    """Statistics of groups over every call of their layers, as of ALBERT's, which all blocks share; one pass for all groups."""
    found: dict[str, Moments] = {}
    names = {group[0]: group for group in groups}

    def add(name: str, inputs: Tensor) -> None:
        if name not in found:
            found[name] = Moments.of(names[name], inputs)
        found[name].add(inputs)

    each_call(net, names, batches, add)
    for name, moments in found.items():
        complete(moments.second, name)
    return list(found.values())


@torch.no_grad()
def each_call(
    net: Any, names: Collection[str], batches: list[dict], look: Callable[[str, Tensor], None]
) -> None:
    """Call look(name, inputs) before every call of these layers; inputs: (tokens, features) without padding."""
    modules = {name: net.get_submodule(name) for name in names}
    with attached(on_inputs(modules, lambda name, args: look(name, rows(args[0], mask)))):
        for batch in batches if names else ():
            mask = batch["attention_mask"]
            net(**batch)


@torch.no_grad()
def called_again(net: Any, batch: dict) -> set[str]:
    """Names of the linear layers that run more than once for a batch."""
    calls: Counter[str] = Counter()
    with attached(on_inputs(architecture.linears(net), lambda name, _: calls.update([name]))):
        net(**batch)
    return {name for name, count in calls.items() if count > 1}


def _of_table(net: Any, batches: list[dict]) -> Moments:
    """Of a table of static embeddings, whose rows are the outputs: an error costs the same in every column."""
    count = sum(len(batch["input_ids"]) for batch in batches)
    ones = torch.ones(net.embedding.embedding_dim)
    (name,) = architecture.linears(net)
    return Moments([name], count * ones.diag(), count * ones, -ones, ones, count)


@torch.no_grad()
def groups_of(net: Any, batch: dict) -> list[list[str]]:
    """Names of the linear layers that a batch reaches, in the order they run, grouped by the tensor they read."""
    groups: list[list[str]] = []
    seen: set[str] = set()
    last_input = None

    def visit(name: str, args: tuple) -> None:
        nonlocal last_input
        if name in seen:
            return
        seen.add(name)
        if args[0] is last_input:
            groups[-1].append(name)
        else:
            groups.append([name])
        last_input = args[0]

    with attached(on_inputs(architecture.linears(net), visit)):
        net(**batch)
    return groups


def read(folder: Path) -> tuple[list[list[str]], dict[str, Tensor]]:
    """Groups of layer names in order, and the tensors by name; files are mapped, not read."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return [group["names"] for group in meta(folder)["result"]["groups"]], tensors


def second_moments(folder: Path) -> dict[str, Tensor]:
    """Second moments of the input of every layer, by its name."""
    groups, tensors = read(folder)
    return {name: tensors[f"second/{group[0]}"] for group in groups for name in group}
