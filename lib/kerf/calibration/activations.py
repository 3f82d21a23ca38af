"""Calibration: what the inputs of every layer look like, on real text, in the float model.

One pass over the text, a group of layers at a time, so that memory does not grow with the number of
layers or of batches. Layers that read the same tensor (query, key and value) form a group whose
statistics are kept once; padding does not count. Kept per group: second moments X^T X / tokens, the
range of every channel, and figures of outliers, which tell which layers will be hard to quantize.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kerf.calibration.hessian import add_second_moments, complete
from kerf.calibration.sequential import layer_inputs
from kerf.config import Calibration
from kerf.core.cache import artifact, meta
from kerf.data import corpora
from kerf.models import architecture, families, registry
from kerf.models.hooks import attached, on_inputs


@dataclass
class Moments:
    """Running statistics of one input of `features` channels."""

    names: list[str]
    second: object  # (features, features), sum of x x^T
    fourth: object  # (features,), sum of x^4
    minimum: object
    maximum: object
    tokens: int = 0

    @classmethod
    def of(cls, names: list[str], features: int) -> "Moments":
        """Empty statistics."""
        import torch

        zeros = torch.zeros(features)
        return cls(
            names, torch.zeros(features, features), zeros, zeros + torch.inf, zeros - torch.inf
        )

    def add(self, inputs) -> None:
        """Take in inputs (tokens, features)."""
        import torch

        add_second_moments(self.second, inputs)
        self.fourth = self.fourth + inputs.square().square_().sum(0)
        self.minimum = torch.minimum(self.minimum, inputs.amin(0))
        self.maximum = torch.maximum(self.maximum, inputs.amax(0))
        self.tokens += len(inputs)

    def figures(self) -> dict:
        """Outlier figures: what makes rounding the weights of this input expensive."""
        import torch

        power = self.second.diagonal()
        mean_square = float(power.mean()) / self.tokens
        peak = float(torch.maximum(-self.minimum, self.maximum).max())
        top = power.sort(descending=True).values[: max(1, len(power) // 100)]
        return {
            "features": len(power),
            "peak_over_rms": peak / mean_square**0.5 if mean_square else 0.0,
            "kurtosis": float(self.fourth.mean()) / self.tokens / mean_square**2
            if mean_square
            else 0.0,
            "top_1_percent_share": float(top.sum() / power.sum()) if mean_square else 0.0,
            "dead": int((power == 0).sum()),
        }


def calibrate(model: str, spec: Calibration) -> Path:
    """Artifact with the statistics of `model` (see the module's docstring) on the text that `spec` names.

    A safetensors file a group holds second/<group>, minimum/<group> and maximum/<group>; meta.json's
    result lists the groups in the order they run. Raises InputError for text or models that cannot be used.
    """
    return artifact("calibration", key_of(model, spec), lambda folder: _make(folder, model, spec))


def key_of(model: str, spec: Calibration) -> dict:
    """Everything that what is calibrated on this text depends on."""
    weights = registry.weights_digest(registry.resolve(model))
    return {"model": weights, "spec": spec.model_dump(), "texts": corpora.digest(spec.texts)}


def _make(folder: Path, model: str, spec: Calibration) -> dict:
    import sentence_transformers  # noqa: F401  imports are not what is measured
    from safetensors.torch import save_file

    clock, found = time.perf_counter(), []
    opened = registry.open_model(model)
    for group in collect(
        registry.network(opened), families.of_opened(opened).batches(opened, spec)
    ):
        name = group.names[0]
        tensors = {f"second/{name}": group.second / group.tokens}
        tensors |= {f"minimum/{name}": group.minimum, f"maximum/{name}": group.maximum}
        save_file(tensors, folder / f"{len(found):04}.safetensors")
        found.append({"names": group.names, "tokens": group.tokens, **group.figures()})
    return {
        "groups": found,
        "texts": spec.samples,
        "calibrate_seconds": time.perf_counter() - clock,
    }


def collect(net, batches: list[dict]) -> Iterator[Moments]:
    """Statistics of every group of linear layers that share an input, in the order they run."""
    for names, inputs in layer_inputs(net, groups_of(net, batches[0]), batches):
        moments = None
        for piece in inputs:
            moments = moments or Moments.of(names, piece.shape[1])
            moments.add(piece)
        complete(moments.second, names[0])
        yield moments


def groups_of(net, batch: dict) -> list[list[str]]:
    """Names of the linear layers that a batch reaches, in the order they run, those with one input together."""
    import torch

    found: list[list[str]] = []
    last: list = [None]

    def look(name, args):
        if any(name in group for group in found):
            return
        if args[0] is last[0]:
            found[-1].append(name)
        else:
            found.append([name])
        last[0] = args[0]

    with torch.no_grad(), attached(on_inputs(architecture.linears(net), look)):
        net(**batch)
    return found


def read(folder: Path) -> tuple[list[list[str]], dict]:
    """Groups of layer names in order, and the tensors by name; files are mapped, not read."""
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return [group["names"] for group in meta(folder)["result"]["groups"]], tensors


def second_moments(folder: Path) -> dict[str, object]:
    """Second moments of the input of every layer, by its name."""
    groups, tensors = read(folder)
    return {name: tensors[f"second/{group[0]}"] for group in groups for name in group}
