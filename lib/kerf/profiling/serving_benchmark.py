"""What a service feels: time until a model is there, memory that it holds, how long a call takes and how many fit in a second.

Every round starts a fresh process for each model, the baseline twice, in an order that changes from round to round,
so that what the machine does in between falls on all of them. A row is the median over the rounds, and its ratio to
the baseline is paired within the round; the baseline against itself is the noise floor.

Run as `python -m kerf.profiling.serving_benchmark REQUEST.json`: one process, one model, and nothing imported that a service would not
import. Files are cold where the page cache can be told to forget them (Linux); the libraries' own files stay warm.
"""

import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kerf.core import child_process

BATCHES, LENGTHS = (1, 8, 32), (16, 64, 256)
CALLS, FEWEST, SECONDS = (
    20,
    2,
    0.3,
)  # of one batch: so many calls, or fewer once so much time is over
UNITS = {"memory": "bytes", "throughput": "texts a second", "energy": "J a text"}
BASELINE, AGAIN = "baseline", "baseline again"
SPEED = "throughput, 32 x 64 tokens"  # what a recommendation looks at
ALONE = 64  # tokens of the texts that one thread answers too


@dataclass(frozen=True)
class Asked:
    """What every process is asked. texts, or pairs of them for a reranker: by length in tokens, at least max(BATCHES) each."""

    model: str
    threads: int
    texts: dict[int, list]


def measure(asked: Asked, candidates: dict[str, Path], rounds: int = 6) -> list[dict]:
    """Rows of model, measure, unit, value, low, high, ratio, ratio_low, ratio_high; rounds: 6 at least give intervals.

    Of a candidate whose process dies the rows are missing, and one says why (measure "failed", note); raises
    RuntimeError where it is the baseline's.
    """
    sources = {
        BASELINE: "",
        AGAIN: "",
        **{name: str(Path(folder).resolve()) for name, folder in candidates.items()},
    }
    found: dict[str, list[dict]] = {name: [] for name in sources}
    failed: dict[str, str] = {}
    for number in range(rounds):
        turn = number % len(sources)
        for name in [*list(sources)[turn:], *list(sources)[:turn]]:
            if name in failed:
                continue
            try:
                found[name].append(_in_process(asked, sources[name]))
            except RuntimeError as error:
                if name == BASELINE:  # nothing to hold the others against
                    raise
                failed[name] = str(error)
    rows = [
        _row(
            name, key, [each[key] for each in found[name]], [each[key] for each in found[BASELINE]]
        )
        for name in sources
        if name not in failed
        for key in found[name][0]
    ]
    return rows + [
        {"model": name, "measure": "failed", "note": why} for name, why in failed.items()
    ]


def _in_process(asked: Asked, source: str) -> dict[str, float]:
    from kerf.core.scratch import scratch

    with scratch() as folder:
        path = Path(folder, "request.json")
        path.write_text(
            json.dumps(
                {
                    "model": asked.model,
                    "candidate": source,
                    "texts": asked.texts,
                    "threads": asked.threads,
                }
            )
        )
        environment = {**os.environ, "OMP_NUM_THREADS": str(asked.threads)}
        command = [sys.executable, "-m", "kerf.profiling.serving_benchmark", str(path)]
        done = child_process.run(command, env=environment)
        if done.returncode:
            raise RuntimeError(f"the process {child_process.how_it_ended(done)}")
        return json.loads(path.with_name("figures.json").read_text())


def _row(name: str, key: str, values: list[float], base: list[float]) -> dict:
    import numpy as np

    from kerf.evaluate import stats as st

    value, low, high = st.median_interval(np.array(values))
    ratio = st.median_interval(np.array(values) / np.array(base[: len(values)]))
    unit = next((unit for start, unit in UNITS.items() if start in key), "s")
    row = {"model": name, "measure": key, "unit": unit, "value": value, "low": low, "high": high}
    return row | dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))


def one(request: dict) -> dict[str, float]:
    """Figures of one model in this process, by name."""
    folder = Path(request["candidate"]) if request["candidate"] else None
    started = time.perf_counter()
    from kerf.core.memory import peak_rss_bytes
    from kerf.models import manifest, registry

    if not folder or manifest.needs_torch(folder):
        import sentence_transformers  # noqa: F401  imports are not what is measured

    imported = time.perf_counter()
    if folder is None:
        folder = registry.resolve(request["model"])
    forget(folder)
    clock = time.perf_counter()
    opened = registry.open_source(request["model"], request["candidate"])
    cold = time.perf_counter()
    first = next(iter(request["texts"].values()))[0]
    answer(opened, [first])
    called = time.perf_counter()
    found = {
        "import": imported - started,
        "load, cold": cold - clock,
        "first call": called - cold,
        "until the first answer": imported - started + called - clock,
    }
    for length, texts in request["texts"].items():
        found |= _calls(opened, texts, f"{length} tokens", tails=True)
    found["resident memory"], found["own memory"] = _memory()
    found["peak memory"] = (
        peak_rss_bytes()
    )  # not ru_maxrss alone, which starts with that of the process that started this one
    clock = time.perf_counter()
    registry.open_source(request["model"], request["candidate"])
    found["load, warm"] = time.perf_counter() - clock
    if (texts := request["texts"].get(str(ALONE))) and request["threads"] > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # read whenever a model is opened
        found |= _calls(
            registry.open_source(request["model"], request["candidate"]),
            texts,
            f"{ALONE} tokens, one thread",
        )
    return found


def answer(opened, texts: list):
    """Embeddings of texts, or scores of pairs of them, in one batch."""
    ask = opened.predict if hasattr(opened, "predict") else opened.encode
    return ask(texts, batch_size=len(texts), show_progress_bar=False)


def _calls(opened, texts: list, what: str, tails: bool = False) -> dict[str, float]:
    """Figures of calls with every size of batch; tails: of the slowest calls, and energy, too."""
    from kerf.profiling import power

    found = {}
    for batch in BATCHES:
        before = power.meters()
        seconds = _seconds(opened, texts[:batch])
        spent = power.joules(before, power.meters())
        found[f"latency, {batch} x {what}"] = statistics.median(seconds)
        for share in (95, 99) if tails else ():
            found[f"latency {share} %, {batch} x {what}"] = statistics.quantiles(
                seconds, n=100, method="inclusive"
            )[share - 1]
        found[f"throughput, {batch} x {what}"] = batch / statistics.median(seconds)
        if spent is not None and tails:  # of all calls, the one that does not count in time too
            found[f"energy, {batch} x {what}"] = spent / (len(seconds) + 1) / batch
    return found


def _seconds(opened, texts: list) -> list[float]:
    """Seconds of calls with one batch, after one warm-up call."""
    seconds: list[float] = []
    while len(seconds) < 1 + FEWEST or len(seconds) < 1 + CALLS and sum(seconds[1:]) < SECONDS:
        clock = time.perf_counter()
        answer(opened, texts)
        seconds.append(time.perf_counter() - clock)
    return seconds[1:]


def _memory() -> tuple[int, int]:
    """Bytes that are resident now, and those that no other process shares."""
    import psutil

    info = psutil.Process().memory_full_info()
    return info.rss, info.uss


def forget(folder: Path) -> bool:
    """Have the page cache forget the files of a directory; False where the system has no such call."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def noisy(rows: list[dict], width: float = 0.2) -> list[str]:
    """Measures on which the baseline did not agree with itself: an interval of its ratio to itself wider than that, or none."""
    again = [row for row in rows if row["model"] == AGAIN and "ratio" in row]
    return [
        row["measure"]
        for row in again
        if None in (row["ratio_low"], row["ratio_high"])
        or row["ratio_high"] - row["ratio_low"] > width
    ]


def recommended(
    rows: list[dict], passed: set[str], measure: str = SPEED, most: float | None = None
) -> str | None:
    """Name of the fastest model of `passed` whose resident memory is at most `most` bytes; None when there is none.

    Nothing is recommended over the baseline that is not faster by more than the noise: the lower bound of its ratio above 1.
    """
    value = {(row["model"], row["measure"]): row for row in rows}
    fits = [
        name
        for name in passed
        if (name, measure) in value
        and (most is None or value[name, "resident memory"]["value"] <= most)
    ]
    faster = [name for name in fits if (value[name, measure]["ratio_low"] or 0) > 1]
    return max(faster, key=lambda name: value[name, measure]["ratio"], default=None)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.with_name("figures.json").write_text(json.dumps(one(json.loads(path.read_text()))))
    os._exit(0)  # taking torch apart in order takes a second and measures nothing
