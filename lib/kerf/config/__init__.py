"""The typed parameters of an experiment: its sections `calibration`, `evaluation` and `resources`, and its steps."""
# ruff: noqa: F401  # the names are imported from this package

from kerf.config.backends import BACKENDS
from kerf.config.base import (
    TEXT_KEYS,
    Calibration,
    Conventions,
    Evaluation,
    Parameters,
    Reconstruct,
    Resources,
)
from kerf.config.chain import check_chain, check_divides, check_pattern, check_value, parse
from kerf.config.methods import METHODS, PRUNING_METHODS, STEPS
from kerf.config.prune import STRUCTURES, UNITS
