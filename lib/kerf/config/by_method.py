"""The keys of a kind of step whose `method` decides which keys there are: a discriminated union that other packages can add to."""

from collections.abc import Mapping

from pydantic.fields import FieldInfo

from kerf.config.base import Parameters
from kerf.core.errors import listed, nearest, one_of, refuse

# Names that keys and methods had in experiments; manifests and the history still have them.
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

    pydantic's own discriminated unions are closed when they are written; methods come by entry points, too.
    """

    def __init__(self, methods: Mapping) -> None:
        self.methods = methods

    @property
    def default(self) -> str:
        """The method of a step that names none."""
        return next(iter(self.methods))

    def type_of(self, values: object, path: str = "") -> type[Parameters]:
        """The type of the keys of a step. Raises InputError for an unknown method, an old name apart with the new one."""
        method = values.get("method", self.default) if isinstance(values, dict) else self.default
        at = f"{path}.method" if path else "method"
        if isinstance(method, str) and method in OLD_METHODS and method not in self.methods:
            raise refuse(at, method, f"{OLD_METHODS[method]}, which it is called now")
        if not isinstance(method, str) or method not in self.methods:
            raise refuse(at, method, one_of(method, self.methods))
        return self.methods[method].parameters

    @property
    def model_fields(self) -> dict[str, FieldInfo]:
        """Every key that any method has."""
        return {
            key: field
            for entry in reversed(list(self.methods.values()))
            for key, field in entry.parameters.model_fields.items()
        }

    def methods_with(self, key: str) -> list[str]:
        """Methods that have a key."""
        return [
            name for name, entry in self.methods.items() if key in entry.parameters.model_fields
        ]

    def unknown(self, key: str, type_: type[Parameters]) -> str:
        """What is accepted in the place of a key that `type_` does not have."""
        elsewhere = self.methods_with(key)
        if elsewhere:
            return f"no key of method {type_.model_fields['method'].default}; {listed(elsewhere, 'and')} {'has' if len(elsewhere) == 1 else 'have'} it"
        return f"no such key; {nearest(key, type_.model_fields)}"


def renamed(step: dict) -> dict:
    """A step of a manifest or of the history, {kind: values}, with today's names of keys and methods."""
    return {
        kind: {
            OLD_KEYS.get(key, key): OLD_METHODS.get(value, value) if key == "method" else value
            for key, value in (values or {}).items()
        }
        for kind, values in step.items()
    }
