"""The typed parameters: what `calibration`, `evaluation` and each kind of step accept, and their defaults."""

from kerf.config.backends import BACKENDS
from kerf.config.base import Parameters
from kerf.config.chain import check_chain, check_divides, check_pattern, check_value, parse
from kerf.config.methods import METHODS, PRUNING_METHODS, STEPS
from kerf.config.prune import STRUCTURES, UNITS, Reconstruct
from kerf.config.text import Calibration, Evaluation, Resources

__all__ = [
    "BACKENDS",
    "METHODS",
    "PRUNING_METHODS",
    "STEPS",
    "STRUCTURES",
    "UNITS",
    "Calibration",
    "Evaluation",
    "Parameters",
    "Reconstruct",
    "Resources",
    "check_chain",
    "check_divides",
    "check_pattern",
    "check_value",
    "parse",
]
