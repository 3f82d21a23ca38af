"""Every method by name: the keys of its step, where its functions are, and which calibration statistics it needs.

A new method is a file with its functions and an entry below, or an entry point `kerf.methods` (quantization) or
`kerf.pruning_methods` in another package. Functions are named as "module:function", so that this module imports no torch.
"""

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic.fields import FieldInfo

from kerf.config import backends, prune, quantize
from kerf.config.base import Parameters, Reconstruct
from kerf.core.errors import listed, nearest, refuse
from kerf.core.registry import Registry

KERNEL, IMPORTED = "kerf.backends.step", "kerf.formats.imported"
GPTQ, SPARSEGPT = "kerf.quantize.gptq", "kerf.prune.sparsegpt"
# Former names of keys and methods, which manifests and the history still have.
OLD_KEYS = {"floor": "min_cosine", "compute": "compute_dtype", "floats": "unquantized_dtype"}
OLD_KEYS |= {"splices": "augmentation_factor", "contexts": "num_chunks", "context": "seq_len"}
OLD_METHODS = {"weights": "weight_only"}


@dataclass(frozen=True)
class Method:
    """A method of `quantize` or `prune` steps; it has a `layer`, or for methods that do not go by layer one of the last three."""

    name: str
    help: str
    parameters: type[Parameters]
    # (kerf.calibration.layer.Layer) -> (Quantized, note), or for pruning (new weight, note)
    layer: Callable | str = ""
    # the network that gives second moments: the original one, or the one whose earlier layers are compressed
    calibration: Literal["none", "moments", "sequential"] = "none"
    shared: Callable | str = ""  # (second moments, step) -> what all layers with this input share
    network: Callable | str = (
        ""  # (Calibrated, step) -> PrunedLayers, as it prunes the network in place
    )
    imported: str = ""  # the module that reads layers quantized by another program
    kernel: str = ""  # the module that makes candidates for a real kernel

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
    _method(quantize.Gptq, f"{GPTQ}:quantize_layer", "sequential", f"{GPTQ}:factor"),
    _method(quantize.Checkpoint, imported=IMPORTED),
    _method(quantize.Gptqmodel, imported=IMPORTED),
    _method(quantize.Static, kernel=KERNEL),
    _method(quantize.Dynamic, kernel=KERNEL),
    _method(quantize.WeightOnly, kernel=KERNEL),
    _method(quantize.Bfloat16, kernel=KERNEL),
)

PRUNING_METHODS = Registry(
    "kerf.pruning_methods",
    _method(prune.Magnitude, "kerf.prune.magnitude:prune_layer"),
    _method(prune.Wanda, "kerf.prune.wanda:prune_layer", "sequential"),
    _method(prune.SparseGPT, f"{SPARSEGPT}:prune_layer", "sequential", f"{SPARSEGPT}:factor"),
    _method(prune.Neurons, network="kerf.prune.structured:prune_network"),
    _method(prune.Heads, network="kerf.prune.structured:prune_network"),
    _method(prune.Depth, network="kerf.prune.depth:prune_network"),
)


@dataclass(frozen=True)
class ByMethod:
    """A kind of step whose keys depend on its `method`: a discriminated union that entry points can extend."""

    methods: Registry

    @property
    def default(self) -> str:
        """The method of a step that names none."""
        return next(iter(self.methods))

    @property
    def model_fields(self) -> Mapping[str, FieldInfo]:
        """The keys of all methods; of a key that several methods have, the field of the first one."""
        return ChainMap(*(entry.parameters.model_fields for entry in self.methods.values()))

    def type_of(self, values: dict, path: str) -> type[Parameters]:
        """The type of a step's keys. Raises InputError for an unknown method, and names the new name of a renamed one."""
        method = values.get("method", self.default)
        if str(method) in OLD_METHODS.keys() - self.methods.keys():
            raise refuse(f"{path}.method", method, f"{OLD_METHODS[method]}, which it is called now")
        return self.methods.named(method, f"{path}.method").parameters


STEPS: dict[str, ByMethod | type[Parameters]] = {
    "quantize": ByMethod(METHODS),
    "reconstruct": Reconstruct,
    "prune": ByMethod(PRUNING_METHODS),
}


def accepted_key(key: str, kind: type[Parameters] | ByMethod, keys: type[Parameters]) -> str:
    """What a refusal names as accepted instead of `key`, which `keys`, the type of a step of `kind`, does not have."""
    if OLD_KEYS.get(key) in kind.model_fields:
        return f"{OLD_KEYS[key]}, which it is called now"
    if not isinstance(kind, ByMethod) or key not in kind.model_fields:
        return f"no such key; {nearest(key, keys.model_fields)}"
    others = [name for name, entry in kind.methods.items() if key in entry.parameters.model_fields]
    verb = "has" if len(others) == 1 else "have"
    method = keys.model_fields["method"].default
    return f"no key of method {method}; {listed(others, 'and')} {verb} it"


def renamed(step: dict) -> dict:
    """A step {kind: values} of a manifest or of the history, with the present names of keys and methods."""
    current = {}
    for kind, values in step.items():
        current[kind] = {OLD_KEYS.get(key, key): value for key, value in (values or {}).items()}
        if "method" in current[kind]:
            method = current[kind]["method"]
            current[kind]["method"] = OLD_METHODS.get(method, method)
    return current
