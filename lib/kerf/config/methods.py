"""Every method by name: the keys of its step, where its functions are, and which calibration statistics it needs.

A new method is a file with its functions and an entry below, or an entry point `kerf.methods` (quantization) or
`kerf.pruning_methods` in another package. Functions are named as "module:function", so that this module imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kerf.config import backends, prune, quantize
from kerf.config.base import Parameters
from kerf.config.by_method import ByMethod
from kerf.config.text import Reconstruct
from kerf.core.registry import Registry

KERNEL = "kerf.backends.step"


@dataclass(frozen=True)
class Method:
    """A method of `quantize` or `prune` steps.

    layer: a function from one `kerf.calibration.layer.Layer` to (Quantized, note), or for pruning to (new weight, note).
    calibration: the model whose activations give the second moments: "moments" (the original one) or "sequential" (the one
    whose earlier layers are compressed). shared: a function of second moments and the step, called once for all layers with
    the same input. Three kinds of methods do not go layer by layer. network: a function of a
    `kerf.calibration.layer.Calibrated` and the step that prunes a network in place and yields a
    `kerf.prune.layers.PrunedLayer` each; imported: a module that reads layers quantized by another program; kernel: a module
    that makes candidates for a real kernel.
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
        """The modules of the method and of the backend that runs it, by default the backend that its keys name."""
        targets = [self.layer, self.shared, self.network, self.imported, self.kernel]
        targets += [self.parameters.__module__]
        if self.kernel:
            targets += backends.modules(backend or self.parameters.model_fields["backend"].default)
        return [backends.module_of(target) for target in targets if target]


def _method(keys: type[Parameters], *functions: Any, **modules: Any) -> Method:
    """A method whose help is the docstring of its keys; further arguments as of Method, from `layer` on."""
    text = (keys.__doc__ or "").removesuffix(".")
    help_text = text if text[1:2].isupper() else text[:1].lower() + text[1:]
    return Method(keys.model_fields["method"].default, help_text, keys, *functions, **modules)


METHODS = Registry(
    "kerf.methods",
    _method(quantize.Rtn, "kerf.quantize.rtn:quantize_layer", "moments"),
    _method(
        quantize.Gptq,
        "kerf.quantize.gptq:quantize_layer",
        "sequential",
        "kerf.quantize.gptq:factor",
    ),
    _method(quantize.Checkpoint, imported="kerf.formats.imported"),
    _method(quantize.Gptqmodel, imported="kerf.formats.imported"),
    _method(quantize.Static, kernel=KERNEL),
    _method(quantize.Dynamic, kernel=KERNEL),
    _method(quantize.WeightOnly, kernel=KERNEL),
    _method(quantize.Bfloat16, kernel=KERNEL),
)

PRUNING_METHODS = Registry(
    "kerf.pruning_methods",
    _method(prune.Magnitude, "kerf.prune.magnitude:prune_layer"),
    _method(prune.Wanda, "kerf.prune.wanda:prune_layer", "sequential"),
    _method(
        prune.SparseGPT,
        "kerf.prune.sparsegpt:prune_layer",
        "sequential",
        "kerf.prune.sparsegpt:factor",
    ),
    _method(prune.Neurons, network="kerf.prune.structured:prune_network"),
    _method(prune.Heads, network="kerf.prune.structured:prune_network"),
    _method(prune.Depth, network="kerf.prune.depth:prune_network"),
)

STEPS: dict[str, ByMethod | type[Parameters]] = {
    "quantize": ByMethod(METHODS),
    "reconstruct": Reconstruct,
    "prune": ByMethod(PRUNING_METHODS),
}
