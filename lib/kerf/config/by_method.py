"""Kinds of steps whose `method` decides which keys they have: a discriminated union that other packages can extend."""

from collections import ChainMap
from collections.abc import Mapping

from pydantic.fields import FieldInfo

from kerf.config.base import Parameters
from kerf.core.errors import listed, nearest, one_of, refuse

# Former names of keys and methods, which manifests and the history still have.
OLD_KEYS = {
    "floor": "min_cosine",
    "compute": "compute_dtype",
    "floats": "unquantized_dtype",
    "splices": "augmentation_factor",
    "contexts": "num_chunks",
    "context": "seq_len",
}
OLD_METHODS = {"weights": "weight_only"}


class ByMethod:
    """A kind of step: `methods` (name -> an entry with its `parameters`), the first of which is the default.

    A discriminated union of pydantic is closed when it is defined, but entry points add methods later.
    """

    def __init__(self, methods: Mapping) -> None:
        self.methods = methods

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
        if isinstance(method, str) and method in self.methods:
            return self.methods[method].parameters
        if isinstance(method, str) and method in OLD_METHODS:
            raise refuse(f"{path}.method", method, f"{OLD_METHODS[method]}, which it is called now")
        raise refuse(f"{path}.method", method, one_of(method, self.methods))


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
        keys = {OLD_KEYS.get(key, key): value for key, value in (values or {}).items()}
        if "method" in keys:
            keys["method"] = OLD_METHODS.get(keys["method"], keys["method"])
        current[kind] = keys
    return current
