"""Serving cost of models: load time, memory, latency, throughput and energy.

Every round starts a fresh process for each model, the baseline twice, in rotating order, so that
disturbances of the machine affect all. A row is the median over the rounds; its ratio to the
baseline is paired within the round; the repeated baseline is the noise floor.

Run as `python -m kerf.profiling.serving_benchmark REQUEST.json`: one model in one process. Imports
that a service does not need stand in functions. Model files leave the page cache first (Linux).
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from kerf.core import child_process
from kerf.profiling import power

BATCHES, LENGTHS = (1, 8, 32), (16, 64, 256)
# Calls per batch: at most CALLS, and at least FEWEST until SECONDS are over.
CALLS, FEWEST, SECONDS = 20, 2, 0.3
UNITS = {"memory": "bytes", "throughput": "texts a second", "energy": "J a text"}
BASELINE, AGAIN = "baseline", "baseline again"
SPEED = "throughput, 32 x 64 tokens"  # decides which candidate is recommended
ALONE = 64  # tokens of the texts that are measured on one thread too
NOISY = 0.2  # width of the interval of the baseline's ratio to itself


def measure(
    model: str, threads: int, texts: dict[int, list], candidates: dict[str, Path], rounds: int = 6
) -> list[dict]:
    """Rows of model, measure, unit, value, low, high, ratio, ratio_low, ratio_high.

    texts (pairs for a reranker): max(BATCHES) or more for each length in tokens. Intervals need 6
    rounds. A candidate whose process dies has one row (measure "failed", note); raises RuntimeError
    for the baseline's.
    """
    request = {"model": model, "threads": threads, "texts": texts}
    sources = {BASELINE: "", AGAIN: ""}
    sources |= {name: str(Path(folder).resolve()) for name, folder in candidates.items()}
    names, failed = list(sources), {}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if name in failed:
                continue
            try:
                runs[name].append(_in_process(request | {"candidate": sources[name]}))
            except RuntimeError as error:
                if name == BASELINE:  # nothing to compare the others with
                    raise
                failed[name] = str(error)
    rows: list[dict] = []
    for name in names:
        for key in runs[name][0] if name not in failed else ():
            values, base = ([run[key] for run in runs[side]] for side in (name, BASELINE))
            rows.append(_row(name, key, values, base))
    reasons = failed.items()
    return rows + [{"model": name, "measure": "failed", "note": why} for name, why in reasons]


def _in_process(request: dict[str, Any]) -> dict[str, float]:
    from kerf.core.scratch import scratch

    with scratch() as folder:
        path = Path(folder, "request.json")
        path.write_text(json.dumps(request))
        environment = {**os.environ, "OMP_NUM_THREADS": str(request["threads"])}
        command = [sys.executable, "-m", "kerf.profiling.serving_benchmark", str(path)]
        done = child_process.run(command, env=environment)
        if done.returncode:
            raise RuntimeError(f"the process {child_process.how_it_ended(done)}")
        return json.loads(path.with_name("figures.json").read_text())


def _row(name: str, key: str, values: list[float], base: list[float]) -> dict[str, Any]:
    import numpy as np

    from kerf.evaluate import stats as st

    value, low, high = st.median_interval(np.array(values))
    ratio = st.median_interval(np.array(values) / np.array(base[: len(values)]))
    unit = next((unit for word, unit in UNITS.items() if word in key), "s")
    row = {"model": name, "measure": key, "unit": unit, "value": value, "low": low, "high": high}
    return row | dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))


def profile(request: dict[str, Any]) -> dict[str, float]:
    """Figures of one model in this process, by name."""
    source, texts = (request["model"], request["candidate"]), request["texts"]
    folder = Path(source[1]) if source[1] else None
    started = time.perf_counter()
    from kerf.core.memory import peak_rss_bytes
    from kerf.models import manifest, registry

    if not folder or manifest.needs_torch(folder):
        import sentence_transformers  # noqa: F401  so that loading includes no imports

    imported = time.perf_counter()
    forget(folder or registry.resolve(source[0]))
    clock = time.perf_counter()
    opened = registry.open_source(*source)
    cold = time.perf_counter()
    answer(opened, next(iter(texts.values()))[:1])
    called = time.perf_counter()
    figures = {
        "import": imported - started,
        "load, cold": cold - clock,
        "first call": called - cold,
        "until the first answer": imported - started + called - clock,
    }
    for length, sample in texts.items():
        figures |= _calls(opened, sample, f"{length} tokens", tails=True)
    import psutil

    memory = psutil.Process().memory_full_info()
    figures["resident memory"], figures["own memory"] = memory.rss, memory.uss
    # ru_maxrss alone would start with the peak of the parent process.
    figures["peak memory"] = peak_rss_bytes()
    clock = time.perf_counter()
    registry.open_source(*source)
    figures["load, warm"] = time.perf_counter() - clock
    if request["threads"] > 1 and str(ALONE) in texts:
        os.environ["OMP_NUM_THREADS"] = "1"  # read whenever a model is opened
        single = registry.open_source(*source)
        figures |= _calls(single, texts[str(ALONE)], f"{ALONE} tokens, one thread")
    return figures


def answer(opened: Any, texts: list) -> Any:
    """Embeddings of texts, or scores of pairs of them, in one batch."""
    run = opened.predict if hasattr(opened, "predict") else opened.encode
    return run(texts, batch_size=len(texts), show_progress_bar=False)


def _calls(opened: Any, texts: list, load: str, tails: bool = False) -> dict[str, float]:
    """Figures of calls with every batch size; tails: latency percentiles and energy, too."""
    figures = {}
    for batch in BATCHES:
        before = power.meters()
        seconds = _seconds(opened, texts[:batch])
        energy = power.joules(before, power.meters())
        figures[f"latency, {batch} x {load}"] = statistics.median(seconds)
        for share in (95, 99) if tails else ():
            percentiles = statistics.quantiles(seconds, n=100, method="inclusive")
            figures[f"latency {share} %, {batch} x {load}"] = percentiles[share - 1]
        figures[f"throughput, {batch} x {load}"] = batch / statistics.median(seconds)
        if tails and energy is not None:  # the warm-up call takes energy too
            figures[f"energy, {batch} x {load}"] = energy / (len(seconds) + 1) / batch
    return figures


def _seconds(opened: Any, texts: list) -> list[float]:
    """Seconds of calls with one batch, after one warm-up call."""
    seconds: list[float] = []
    while len(seconds) < 1 + FEWEST or len(seconds) < 1 + CALLS and sum(seconds[1:]) < SECONDS:
        clock = time.perf_counter()
        answer(opened, texts)
        seconds.append(time.perf_counter() - clock)
    return seconds[1:]


def forget(folder: Path) -> bool:
    """Drop the files of a directory from the page cache; False where the system cannot."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def noisy(rows: list[dict]) -> list[str]:
    """Measures whose ratio of the baseline to itself has an interval wider than NOISY, or none."""
    again = [row for row in rows if row["model"] == AGAIN and "ratio" in row]
    ends = {row["measure"]: (row["ratio_low"], row["ratio_high"]) for row in again}
    return [name for name, (low, high) in ends.items() if None in (low, high) or high - low > NOISY]


def recommended(rows: list[dict], passed: set[str], most: float | None = None) -> str | None:
    """Name of the fastest model of `passed` whose resident memory is at most `most` bytes.

    None where no model is faster than the baseline beyond noise: lower bound of the ratio above 1.
    """
    speed = {row["model"]: row for row in rows if row["measure"] == SPEED}
    memory = {row["model"]: row["value"] for row in rows if row["measure"] == "resident memory"}
    fits = [name for name in passed if name in speed and (most is None or memory[name] <= most)]
    faster = [name for name in fits if (speed[name]["ratio_low"] or 0) > 1]
    return max(faster, key=lambda name: speed[name]["ratio"], default=None)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.with_name("figures.json").write_text(json.dumps(profile(json.loads(path.read_text()))))
    os._exit(0)  # an orderly shutdown of torch takes a second and measures nothing
