"""Every method by name: the keys of its step, what it does to a layer, and what it has to know of the calibration text.

A new method is a file with its functions and an entry here, or in another package an entry point `kerf.methods`
(quantization) or `kerf.pruning_methods`. Functions are named as "module:function": a list of names imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kerf.config import backends, prune, quantize
from kerf.config.base import Parameters
from kerf.config.by_method import ByMethod
from kerf.core.registry import Registry


@dataclass(frozen=True)
class Method:
    """A method of `quantize` or `prune` steps.

    layer: a function of one `kerf.calibration.layer.Layer` to its Quantized and a note (pruning: to its new weight and a
    note). calibration: what the layer's second moments are of: "none",
    "moments" (the model as it was), or "sequential" (the model as the layers before have become). shared: a function
    of second moments and the step, called once for all layers that share an input. Three kinds of methods do not go layer by
    layer: network, a function of a `kerf.calibration.layer.Calibrated` and the step that prunes a network in place and yields a
    `kerf.prune.layers.PrunedLayer` each; imported, a module that reads layers quantized by another program; kernel, a module that
    makes a candidate for a real kernel.
    """

    name: str
    help: str
    parameters: type[Parameters]
    layer: Callable | str = ""
    calibration: Literal["none", "moments", "sequential"] = "none"
    shared: Callable | str = ""
    network: str = ""
    imported: str = ""
    kernel: str = ""

    def modules(self, backend: str | None = None) -> list[str]:
        """Where its functions stand, and those of the backend that runs it; None: the one that is taken by default."""
        functions = [each for each in (self.layer, self.shared) if each]
        named = [each if isinstance(each, str) else each.__module__ for each in functions]
        modules = [self.network, self.imported, self.kernel, self.parameters.__module__]
        if self.kernel:
            modules += backends.modules(backend or self.parameters.model_fields["backend"].default)
        return [each.partition(":")[0] for each in (*named, *modules) if each]


METHODS = Registry(
    "kerf.methods",
    Method("rtn", "round to nearest", quantize.Rtn, "kerf.quantize.rtn:layer", "moments"),
    Method(
        "gptq",
        "column by column with error feedback (Frantar et al. 2022)",
        quantize.Gptq,
        "kerf.quantize.gptq:layer",
        "sequential",
        "kerf.quantize.gptq:factor",
    ),
    Method(
        "checkpoint",
        "a GPTQ checkpoint of this language model",
        quantize.Checkpoint,
        imported="kerf.formats.imported",
    ),
    Method(
        "gptqmodel",
        "GPTQModel, after `make peers`",
        quantize.Gptqmodel,
        imported="kerf.formats.imported",
    ),
    Method(
        "static",
        "weights and inputs in INT8 on a real kernel, ranges from calibration text; encoders, rerankers",
        quantize.Static,
        kernel="kerf.backends.step",
    ),
    Method(
        "dynamic",
        "weights and inputs in INT8 on a real kernel, ranges of every token as it comes; encoders, rerankers",
        quantize.Dynamic,
        kernel="kerf.backends.step",
    ),
    Method(
        "weight_only",
        "8 or 4 bits that a real kernel unpacks as it multiplies; encoders, rerankers",
        quantize.WeightOnly,
        kernel="kerf.backends.step",
    ),
    Method(
        "bfloat16",
        "a real kernel in half the bits; encoders, rerankers",
        quantize.Bfloat16,
        kernel="kerf.backends.step",
    ),
)

PRUNING_METHODS = Registry(
    "kerf.pruning_methods",
    Method("magnitude", "the smallest weights go", prune.Magnitude, "kerf.prune.magnitude:layer"),
    Method(
        "wanda",
        "the smallest by weight and input go (Sun et al. 2023)",
        prune.Wanda,
        "kerf.prune.wanda:layer",
        "sequential",
    ),
    Method(
        "sparsegpt",
        "column by column with error feedback (Frantar and Alistarh 2023)",
        prune.SparseGPT,
        "kerf.prune.sparsegpt:layer",
        "sequential",
        "kerf.prune.sparsegpt:factor",
    ),
    Method(
        "neurons",
        "whole feed-forward neurons, by least squares: smaller matrices",
        prune.Neurons,
        network="kerf.prune.structured:prune_network",
    ),
    Method(
        "heads",
        "whole key and value heads with their query heads, by least squares",
        prune.Heads,
        network="kerf.prune.structured:prune_network",
    ),
    Method(
        "depth",
        "whole blocks, those that change their input least",
        prune.Depth,
        network="kerf.prune.depth:prune_network",
    ),
)

STEPS: dict[str, ByMethod | type[Parameters]] = {
    "quantize": ByMethod(METHODS),
    "reconstruct": prune.Reconstruct,
    "prune": ByMethod(PRUNING_METHODS),
}
