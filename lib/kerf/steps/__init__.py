"""The typed parameters: what `calibration`, `evaluation` and each kind of step accept, and their defaults."""

from kerf.steps.base import Parameters
from kerf.steps.chain import STEPS, check_chain, check_divides, check_pattern, check_value, parse
from kerf.steps.prune import STRUCTURES, UNITS, Prune, Reconstruct
from kerf.steps.quantize import BACKENDS, ELSEWHERE, REAL, Quantize
from kerf.steps.text import Calibration, Evaluation, Resources

__all__ = [
    "BACKENDS", "ELSEWHERE", "REAL", "STEPS", "STRUCTURES", "Calibration", "Evaluation", "Parameters", "Prune", "Quantize",
    "Reconstruct", "Resources", "UNITS", "check_chain", "check_divides", "check_pattern", "check_value", "parse",
]  # fmt: skip
