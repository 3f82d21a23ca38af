"""What a run will take: minutes, memory and disk, from a short measurement of this model on this machine.

`kerf.workbench.run.pilot` measures, and what the steps compute is counted (`WORK`). It is an estimate: steps that stop early,
and a change of the load on the machine, are not in it.
"""

from typing import NamedTuple

from kerf.config import METHODS, PRUNING_METHODS
from kerf.core.cache import threads
from kerf.evaluate import latency
from kerf.profiling import serving_benchmark
from kerf.workbench.run.experiment import Experiment, Step
from kerf.workbench.run.pilot import measured

LOADS = 7  # of a model in a process that measures it (`kerf.evaluate.measure`)
UNPACKING = 3  # times the seconds of the baseline, to load a candidate with packed weights


class Work(NamedTuple):
    """What a step computes for layers of r rows, c columns and T calibration tokens.

    passes over the text; multiples of T c^2 (second moments), of c^3 (factorizations) and of r c^2 (products with the weight).
    """

    passes: float
    moments: float
    factors: float
    products: float


# By the statistics that a method needs (`Method.calibration`). Sequential: the float model runs beside the compressed one;
# H is a half of X^T X and the drift a whole product; factorizations are a Cholesky factor and its inverse, for the
# method and for `corrected`; products are those of the correction (3), of rounding column by column, and of the error (2 x 2).
WORK = {"none": Work(0, 0, 0, 4), "moments": Work(0, 0, 0, 4), "sequential": Work(2, 3, 3, 16)}
NETWORK = Work(2, 3, 2, 8)  # methods that remove whole units: least squares of what remains
SEARCH = (
    60  # passes over the weights of a clip search, each about as long as products with 4 columns
)
HELD_TOKENS, TRIED = 1000, 7  # of held-out text for each layer and width of mixed precision


class Estimate(NamedTuple):
    """Seconds, bytes of the largest process, and bytes on disk."""

    seconds: float
    memory: float
    disk: float


def estimate(experiment: Experiment, description: dict) -> tuple[Estimate, dict]:
    """What a run from the start takes, and the measurement (`_measure`). Raises RuntimeError where the model does not run."""
    seen = measured(experiment, description["kind"])
    seconds = (
        3 * seen["import"]
    )  # of the runner itself, and of the warm process that kernels are forked from
    memory, disk = seen["memory"], 0.0
    seconds += _notebook(seen) + seen["forward"] + _flops(seen, Work(1, 1, 0, 0), seen["tokens"])
    seconds += _compared(seen, seen["everything"], 1) + _compared(seen, 1.0, 1)
    widest = max((columns for _, columns in seen["layers"]), default=0)
    for chain in experiment.candidates.values():
        steps = sum(_notebook(seen) + _step(step, seen, experiment) for step in chain)
        faster = any(_is_kernel(step) or _removes_units(step) for step in chain)
        each = steps + _compared(seen, 1.0, UNPACKING)
        each += faster * (2 * seen["import"] + 2 * (latency.ROUNDS + 1) * seen["batch"])
        seconds += experiment.calibration.draws * each
        memory = max(memory, seen["memory"] + description["bytes"] + 4 * 4 * widest**2)
        disk += (1 + len(chain)) * _stored(chain, description) + seen["outputs"]
    if experiment.resources:
        runs = experiment.resources.rounds * (2 + len(experiment.candidates))
        seconds += _notebook(seen) + runs * _served(seen)
    return Estimate(seconds, memory, disk + 2 * seen["outputs"]), seen


def _notebook(seen: dict) -> float:
    """A notebook starts a kernel and is written as a page; that takes about as long as the imports."""
    return seen["import"]


def _compared(seen: dict, share: float, unpacking: float) -> float:
    """A notebook, a fresh process with its loads, inference, and statistics."""
    process = seen["process"] + LOADS * (unpacking - 1) * seen["load"] + share * seen["inference"]
    return _notebook(seen) + process + seen["statistics"] + seen["restored"]


def _served(seen: dict) -> float:
    """One process of the service benchmark."""
    tokens = sum(serving_benchmark.BATCHES) * sum(serving_benchmark.LENGTHS)
    tokens += sum(serving_benchmark.BATCHES) * serving_benchmark.ALONE * threads()
    calls = len(serving_benchmark.BATCHES) * (len(serving_benchmark.LENGTHS) + 1)
    busy = max(serving_benchmark.FEWEST * tokens * _per_token(seen), calls * 0.3)
    return seen["import"] + 3 * seen["load"] + busy


def _per_token(seen: dict) -> float:
    return seen["forward"] / seen["tokens"]


def _step(step: Step, seen: dict, experiment: Experiment) -> float:
    """Seconds of one step of a candidate."""
    parameters, opening = step.parameters, 2 * seen["load"]
    if step.kind == "reconstruct":
        # A step trains one of the blocks, forward and backward, and the joint ones all of them beside the float model.
        passes = 3 * 2 * parameters.steps + 4 * 2 * parameters.joint_steps
        trained = passes * 512 * _per_token(seen)
        return opening + min(60 * parameters.minutes, trained)
    method = {**PRUNING_METHODS, **METHODS}[parameters.method]
    work = NETWORK if method.network else WORK[method.calibration]
    seconds = opening + _flops(seen, work, seen["tokens"]) + work.passes * seen["forward"]
    weights = sum(rows * columns for rows, columns in seen["layers"])
    if getattr(parameters, "clip", "none") != "none":
        seconds += SEARCH * 8 * weights / seen["flops"]
    if getattr(parameters, "bits", None) == "mixed" or parameters.allocation == "sensitivity":
        tried = TRIED * len(seen["layers"])
        seconds += tried * HELD_TOKENS * _per_token(seen) + seconds
    if _is_kernel(step):
        seconds += seen["import"] + UNPACKING * seen["load"]  # conversion traces the network
    return seconds


def _flops(seen: dict, work: Work, tokens: int) -> float:
    """Seconds of a method's products at the measured rate."""
    moments = sum(columns**2 for columns in seen["inputs"]) * tokens * work.moments
    factors = sum(columns**3 for columns in seen["inputs"]) * work.factors
    products = sum(rows * columns**2 for rows, columns in seen["layers"]) * work.products
    return (moments + factors + products) / seen["flops"]


def _is_kernel(step: Step) -> bool:
    return step.notebook == "kernels"


def _removes_units(step: Step) -> bool:
    return step.kind == "prune" and bool(PRUNING_METHODS[step.parameters.method].network)


def _stored(chain: list[Step], description: dict) -> float:
    """Bytes of a candidate."""
    bits = [getattr(step.parameters, "bits", None) for step in chain if step.kind == "quantize"]
    width = bits[-1] if bits and isinstance(bits[-1], int | float) else 4 if bits else 32
    return description["bytes"] * min(1, (width + 2) / 32)
