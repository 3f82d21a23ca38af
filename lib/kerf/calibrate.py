"""Calibration: what the inputs of every layer look like, on real text, in the float model.

One pass over the text. Layers that read the same tensor (query, key and value) form a group whose
statistics are kept once; padding does not count. Kept per group: second moments X^T X / tokens, the
range of every channel, and figures of outliers, which tell which layers will be hard to quantize.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from kerf import models, texts
from kerf.artifacts import artifact, meta
from kerf.lockstep import rows
from kerf.steps import Calibration

BATCH_SIZE = 16


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
    def of(cls, name: str, features: int) -> "Moments":
        """Empty statistics."""
        import torch

        zeros = torch.zeros(features)
        return cls([name], torch.zeros(features, features), zeros, zeros + torch.inf, zeros - torch.inf)

    def add(self, inputs) -> None:
        """Take in inputs (tokens, features)."""
        import torch

        self.second.addmm_(inputs.T, inputs)
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
            "kurtosis": float(self.fourth.mean()) / self.tokens / mean_square**2 if mean_square else 0.0,
            "top_1_percent_share": float(top.sum() / power.sum()) if mean_square else 0.0,
            "dead": int((power == 0).sum()),
        }


def calibrate(model: str, spec: Calibration, device: str = "cpu") -> Path:
    """Artifact with the statistics of `model` (see the module's docstring) on the text that `spec` names.

    `moments.safetensors` holds second/<group>, minimum/<group> and maximum/<group>; meta.json's result
    lists the groups in the order they run. Raises Refused for text or models that cannot be used.
    """
    sample = texts.calibration_sentences(spec.texts, spec.samples, spec.seed)
    key = {"model": models.weights_digest(models.resolve(model)), "spec": spec.model_dump(), "texts": sample}
    return artifact("calibration", key, lambda folder: _make(folder, model, sample, spec, device))


def _make(folder: Path, model: str, sample: list[str], spec: Calibration, device: str) -> dict:
    import sentence_transformers  # noqa: F401  imports are not what calibrating costs
    from safetensors.torch import save_file

    clock = time.perf_counter()
    opened = models.open_model(model, device)
    groups = collect(models.network(opened), models.batches(opened, sample, BATCH_SIZE, spec.max_length))
    tensors = {}
    for group in groups:
        tensors[f"second/{group.names[0]}"] = group.second / group.tokens
        tensors[f"minimum/{group.names[0]}"] = group.minimum
        tensors[f"maximum/{group.names[0]}"] = group.maximum
    save_file(tensors, folder / "moments.safetensors")
    found = [{"names": group.names, "tokens": group.tokens, **group.figures()} for group in groups]
    return {"groups": found, "texts": len(sample), "calibrate_seconds": time.perf_counter() - clock}


def collect(net, batches: list[dict]) -> list[Moments]:
    """Statistics of every group of linear layers that share an input, in the order they run."""
    import torch

    found: dict[str, Moments] = {}
    last: list = [None, None]  # the tensor that the layer before read, and its statistics
    mask: list = [None]

    def look(name, inputs):
        if inputs is last[0]:
            if name not in last[1].names:
                last[1].names.append(name)
            return
        if name not in found:
            found[name] = Moments.of(name, inputs.shape[-1])
        moments = found[name]
        moments.add(rows(inputs, mask[0]))
        last[:] = inputs, moments

    layers = models.linears(net)
    hooks = [m.register_forward_pre_hook(lambda _, a, name=n: look(name, a[0])) for n, m in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                mask[0], last[:] = batch["attention_mask"], (None, None)
                net(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def read(folder: Path) -> tuple[list[list[str]], dict]:
    """Groups of layer names in order, and the tensors by name."""
    from safetensors.torch import load_file

    return [group["names"] for group in meta(folder)["result"]["groups"]], load_file(folder / "moments.safetensors")
