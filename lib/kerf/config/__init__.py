"""The typed parameters: what `calibration`, `evaluation` and each kind of step accept, and their defaults."""

from kerf.config.base import Parameters
from kerf.config.chain import STEPS, check_chain, check_divides, check_pattern, check_value, parse
from kerf.config.prune import Prune, Reconstruct, STRUCTURES, UNITS
from kerf.config.quantize import BACKENDS, ELSEWHERE, Quantize, KERNEL_METHODS
from kerf.config.text import Calibration, Evaluation, Resources

__all__ = [
    "BACKENDS", "ELSEWHERE", "KERNEL_METHODS", "STEPS", "STRUCTURES", "Calibration", "Evaluation", "Parameters", "Prune", "Quantize",
    "Reconstruct", "Resources", "UNITS", "check_chain", "check_divides", "check_pattern", "check_value", "parse",
]  # fmt: skip
