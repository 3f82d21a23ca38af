"""How each family of models is measured: one module a family, all with the same names."""

from types import ModuleType

from kerf.evaluate import causal, cross_encoder, encoder
from kerf.models import families, registry

KINDS = {"encoder": encoder, "causal": causal, "reranker": cross_encoder}


def kind(model: str) -> ModuleType:
    """How models of this one's family are measured."""
    return KINDS[families.name_of(registry.resolve(model))]
