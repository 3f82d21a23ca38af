"""A candidate made by one step of a chain: what the step starts from, and how its result becomes an artifact."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from kerf.calibration import activations
from kerf.config import Calibration
from kerf.config.base import Parameters
from kerf.core.cache import artifact
from kerf.core.memory import peak_rss_bytes, reset_peak_rss
from kerf.models import families, linearized, manifest, registry


@dataclass(frozen=True)
class StepContext:
    """What one step starts from.

    kind: "quantize", "prune" or "reconstruct". model: the baseline's name or directory. source: directory of the candidate
    that the steps before it made; None for the baseline.
    """

    kind: str
    model: str
    step: Any  # the Parameters of the step's method
    calibration: Calibration
    source: Path | None = None

    @cached_property
    def steps_before(self) -> list[dict]:
        """The steps that made `source`."""
        return manifest.verify(self.source)["steps"] if self.source else []

    @property
    def steps(self) -> list[dict]:
        """All steps of the chain, this one last."""
        return [*self.steps_before, {self.kind: self.step.model_dump()}]

    @property
    def origin(self) -> Path:
        """Directory with the small files (configuration, tokenizer) that the candidate shares."""
        return self.source or registry.resolve(self.model)

    def key(self, step: Parameters | None = None) -> dict:
        """What the result depends on apart from code; step: of another step with the same inputs."""
        return {
            "step": (step or self.step).model_dump(),
            "calibration": activations.key_of(self.model, self.calibration),
            "source": registry.weights_digest(self.source) if self.source else None,
        }

    def open(self, device: str = "") -> Any:
        """The model that the step changes: `source`, or the baseline."""
        return registry.open_source(self.model, self.source, device)

    def open_pair(self) -> tuple[Any, nn.Module, nn.Module]:
        """The opened model, its network, and a second copy of the network that stays as it is."""
        opened = self.open()
        return opened, registry.network(opened), registry.network(self.open())

    def batches(self, opened: Any) -> list[dict]:
        """The calibration text as batches of the network's inputs."""
        return families.of_opened(opened).batches(opened, self.calibration)

    def card(self, network: nn.Module) -> dict:
        """The candidate's manifest, without the digests of its files."""
        family = families.name_of(registry.resolve(self.model))
        name = type(network).__name__
        card = {"model": self.model, "kind": family, "class": name, "steps": self.steps}
        names = linearized.transposed(network)
        return card | ({"transposed": names} if names else {})


def make_candidate(
    context: StepContext,
    make: Callable[[StepContext, Path], dict],
    key: dict | None = None,
    modules: Iterable[str] = (),
) -> Path:
    """Directory of the candidate that `make(context, folder)` writes, made once for the same inputs.

    `make` returns what the artifact keeps beside seconds, peak memory and sizes; it may override these, or add
    "elsewhere": (seconds, peak bytes) of another program. key: what else the result depends on; modules: those that `make`
    reaches through a registry.
    """

    def build(folder: Path) -> dict:
        import sentence_transformers  # noqa: F401  so that the import is not measured

        reset_peak_rss()
        started = time.perf_counter()
        result = make(context, folder)
        seconds, peak = result.pop("elsewhere", (0.0, 0))
        measured = {
            "compress_seconds": time.perf_counter() - started + seconds,
            "compress_peak_rss_bytes": max(peak_rss_bytes(), peak),
        }
        common = {"model": context.model, "steps": context.steps}
        return {**common, **measured, **result, **manifest.size(folder)}

    roots = (make.__module__, *modules)
    return artifact("candidate", {**context.key(), **(key or {})}, build, also=roots)
