"""A short measurement of a model on this machine, from which `kerf.workbench.run.estimate` computes what a run takes.

How long a fresh process takes to import and load the model, inference on a sample of the evaluation inputs, the statistics on
outputs of the full size, a forward pass over calibration text, and the rate of matrix products.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kerf.core import child_process
from kerf.core.cache import artifact, meta, threads
from kerf.core.scratch import scratch
from kerf.evaluate import PROBES, of_family
from kerf.evaluate.measured_process import run_measured
from kerf.evaluate.protocol import Comparison
from kerf.models import families, registry
from kerf.workbench.run import plan
from kerf.workbench.run.experiment import Experiment

SHARE = 24  # one of so many evaluation inputs is read in the measurement
LEAST, CHARACTERS = 24_000, 4  # characters that are read, if there are so many; of a token


def measured(experiment: Experiment, kind: str) -> dict:
    """The measurement, cached by model, texts, code and machine."""
    inputs = plan.inputs(experiment)
    calibration, spec = experiment.calibration, experiment.evaluation
    key: dict[str, Any] = {n: inputs[n] for n in ("weights", "calibration", "evaluation")}
    key |= {"spec": [calibration.model_dump(), spec.model_dump()]}
    code = ["kerf.evaluate", families.FAMILIES[kind].EVALUATION, "kerf.workbench.run.pilot"]
    folder = artifact("pilot", key, lambda folder: _measure(experiment, kind, folder), code=code)
    return meta(folder)["result"]


def _measure(experiment: Experiment, kind: str, folder: Path) -> dict:
    """Seconds of the imports, a fresh process without its inference, a load, inference on what candidates read (everything: times
    more of the baseline), statistics, one pass over all calibration text of so many tokens, and a batch; flops: products a second;
    memory, outputs: bytes."""
    evaluation = of_family(kind)
    gathered = evaluation.gather(experiment.model, experiment.evaluation)
    shared, everything = (
        evaluation.inference_request(gathered, False, wanted) for wanted in (False, True)
    )
    sample, about = _part(shared), {"model": experiment.model, "candidate": "", "family": kind}
    imports = _timed(_import).seconds
    opened = registry.open_model(experiment.model)
    one = evaluation.latency_input(gathered)
    evaluation.predict_once(opened, one)  # a warm-up
    batch = _timed(lambda: evaluation.predict_once(opened, one)).seconds
    with scratch() as aside:
        request: dict = {"probes": gathered.all[:PROBES], **about, "threads": threads(), "seed": 0}
        request |= sample
        process = _timed(lambda: run_measured("kerf.evaluate.measure", request, aside))
        outputs = sum(path.stat().st_size for path in aside.iterdir())
        inference = _timed(lambda: evaluation.run_inference(opened, request, aside)).seconds
        statistics = _statistics(evaluation, gathered, aside, experiment)
    times = _size(shared) / _size(sample)
    return {
        "import": imports,
        "process": max(imports, process.seconds - inference),
        "load": float(np.median(process.result["load_seconds"])),
        "inference": times * inference,
        "everything": _size(everything) / _size(shared),
        "statistics": statistics,
        "batch": batch,
        "memory": process.result["rss_peak_bytes"],
        "outputs": times * outputs,
        "cut": _cut(experiment, opened, gathered),
        **_network(experiment, opened),
    }


class _Timed(NamedTuple):
    seconds: float
    result: Any


def _timed(work: Callable[[], Any]) -> _Timed:
    clock = time.perf_counter()
    result = work()
    return _Timed(time.perf_counter() - clock, result)


def _import() -> None:
    done = child_process.run([sys.executable, "-c", "import sentence_transformers"])
    if done.returncode:
        raise RuntimeError(f"the measured process {child_process.how_it_ended(done)}")


def _part(request: dict) -> dict:
    """A request with one of SHARE items of every list, or as many as have LEAST characters: fewer would pad one another."""
    lists = {name: value for name, value in request.items() if isinstance(value, list) and value}
    strides = {n: max(1, min(SHARE, _size(items) // LEAST)) for n, items in lists.items()}
    return request | {name: items[:: strides[name]] for name, items in lists.items()}


def _size(value: Any) -> int:
    """Characters of the texts in a request; a token counts as CHARACTERS."""
    if isinstance(value, dict):
        value = [item for item in value.values() if isinstance(item, list)]
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str) else CHARACTERS


def _statistics(evaluation: Any, gathered: Any, folder: Path, experiment: Experiment) -> float:
    """Seconds that metrics and their intervals take, on outputs of the full size made of those in `folder`."""
    if not (folder / "outputs.npy").is_file():  # of language models
        return 0.0
    made: np.ndarray = np.load(folder / "outputs.npy")
    count = len(evaluation.inference_request(gathered, False, True)["inputs"])
    generator, rows = np.random.default_rng(0), np.resize(made, (count, *made.shape[1:]))
    with scratch() as aside:
        sides = [aside / "base", aside / "other"]
        for side in sides:
            side.mkdir()
            noise = generator.normal(scale=float(made.std()) or 1.0, size=rows.shape)
            np.save(side / "outputs.npy", (rows + noise).astype(np.float32))
        comparison = Comparison(aside, experiment.model, "", experiment.evaluation, *sides)
        return _timed(lambda: evaluation.compare(comparison, gathered)).seconds


def _network(experiment: Experiment, opened: Any) -> dict:
    """Shapes (rows, columns) of layers, columns of their inputs, and the rates of a forward pass and of products."""
    import torch

    from kerf.calibration import activations
    from kerf.models import architecture

    family, net = families.of_opened(opened), registry.network(opened)
    batches = family.batches(opened, experiment.calibration)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    groups = activations.groups_of(net, batches[0])
    shapes = {name: tuple(layer.weight.shape) for name, layer in architecture.linears(net).items()}
    middle = batches[len(batches) // 2]
    with torch.inference_mode():
        net(**middle)
        forward = _timed(lambda: net(**middle)).seconds / int(middle["attention_mask"].sum())
    square = torch.randn(1024, 1024)
    rate = 2 * 1024**3 / min(_timed(lambda: square @ square).seconds for _ in range(5))
    blocks = len(architecture.blocks(net)) if family is families.causal else 0
    spec = experiment.evaluation
    restored = (
        spec.restored * blocks / 2 * spec.seq_len * forward
    )  # blocks before it do not run again
    return {
        "tokens": tokens,
        "forward": forward * tokens,
        "flops": rate,
        "layers": list(shapes.values()),
        "inputs": [shapes[names[0]][1] for names in groups if names[0] in shapes],
        "restored": restored,
    }


def _cut(experiment: Experiment, opened: Any, gathered: Any) -> list[list]:
    """Rows (what, how many are longer, of how many, than so many tokens) of texts that the model reads one by one."""
    most = getattr(opened, "max_seq_length", None)
    if not most:  # a language model reads a stream
        return []
    calibration, folder = experiment.calibration, registry.resolve(experiment.model)
    known = families.of_opened(opened).sample_texts(folder, calibration)
    rows = []
    for what, texts, limit in (
        ("calibration", known, min(most, calibration.max_length)),
        ("evaluation", getattr(gathered, "pairs", gathered.all), most),
    ):
        columns = zip(*texts, strict=True) if isinstance(texts[0], tuple) else [texts]
        ids = opened.tokenizer(*map(list, columns), truncation=False, verbose=False)["input_ids"]
        rows.append([what, sum(len(row) > limit for row in ids), len(ids), limit])
    return rows
