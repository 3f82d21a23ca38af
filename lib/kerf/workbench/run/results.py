"""results.json: what a run found, put together from its stages. Its fields are a contract (schema 1)."""

import importlib.metadata
import platform
import shutil
import time

import kerf
from kerf import evaluate
from kerf.core.atomic import write_json
from kerf.core.cache import machine, meta, replace_folder, threads
from kerf.core.scratch import scratch
from kerf.data.downloads import SOURCES, TEXTS
from kerf.evaluate import gates
from kerf.evaluate.metrics import METRICS
from kerf.profiling import footprint, serving_benchmark
from kerf.profiling.power import governor
from kerf.workbench.run.experiment import Experiment
from kerf.workbench.run.history import SUMS, history, record_digests
from kerf.workbench.run.record import SCHEMA
from kerf.workbench.run.runner import Candidate, Run

TIMED = (
    "rss_peak_bytes",
    "load_seconds",
    "speedup",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
)


def assemble(run: Run, description: dict, found: list[Candidate]) -> tuple[dict, dict]:
    """results.json as a dict, and the pictures' data by candidate. found: baseline, noise, candidates."""
    baseline, noise, *others = found
    floor = _noise(noise)
    rows = [_entry(run, description, candidate, floor) for candidate in (baseline, *others)]
    drawn = {c.name: evaluate.read(c.compared.result)[1] for c in others if c.compared}
    similarities = {name: picture for name, picture in drawn.items() if "edges" in picture}
    experiment = run.experiment
    results = {
        "schema": SCHEMA,
        "experiment": run.name,
        "verdict": gates.run_verdict(rows, experiment.release),
        "model": {
            key: description[key]
            for key in ("id", "kind", "parameters", "bytes", "on_grid", "origin", "ignored_code")
        },
        "release": experiment.release,
        "criteria": list(experiment.criteria),
        "grade_rule": gates.GRADE_RULE,
        "settings": _settings(experiment),
        "candidates": rows,
        "resources": _resources(run, rows),
        "texts": _texts(),
        "manifest": _manifest(run),
    }
    restored = {
        name: picture["restored"] for name, picture in drawn.items() if picture.get("restored")
    }
    return results, {"similarities": similarities, "restored": restored}


def _resources(run: Run, rows: list[dict]) -> dict | None:
    """What each candidate takes as a service, and the one to take; None where it was not asked for."""
    asked, done = run.experiment.resources, run.service.compared
    if not asked or not done and not run.service.error:
        return None
    if not done:
        return {"error": run.service.error}
    measured, stored = footprint.read(done.result)
    passed = {
        row["name"] for row in rows if row["verdict"] == gates.PASS and row["name"] != "baseline"
    }
    return {
        "rows": measured,
        "vectors": stored,
        "noisy": serving_benchmark.noisy(measured),
        "memory_limit": asked.memory_limit,
        "threads": asked.threads or threads(),
        "rounds": asked.rounds,
        "recommended": serving_benchmark.recommended(
            measured, passed, most=asked.memory_limit and asked.memory_limit * 1e6
        ),
        "run": done.run,
        "error": None,
    }


def _settings(experiment: Experiment) -> dict[str, dict]:
    """Effective value and origin of what all candidates share, by its path in the experiment."""
    values = {"model": experiment.model}
    for section in ("calibration", "evaluation", *(["resources"] if experiment.resources else [])):
        values |= {
            f"{section}.{key}": value
            for key, value in getattr(experiment, section).model_dump().items()
        }
    return {
        path: {"value": value, "from": experiment.origin[path]} for path, value in values.items()
    }


def _noise(noise: Candidate) -> dict[str, dict]:
    """Metric name -> range of the baseline measured again."""
    if not noise.compared:
        return {}
    floor = {}
    for row in evaluate.read(noise.compared.result)[0]:
        ends = [row[key] for key in ("value", "low", "high", "baseline") if row[key] is not None]
        if None in (row["value"], row["baseline"]):
            continue
        if row["name"] not in TIMED:
            ends = [
                row["value"],
                row["baseline"],
            ]  # the interval is about texts; the noise is about the machine
        floor[row["name"]] = {"low": min(ends), "high": max(ends)}
    return floor


def _entry(run: Run, description: dict, candidate: Candidate, floor: dict) -> dict:
    chain = run.experiment.candidates.get(candidate.name, [])
    full = [{step.kind: step.parameters.model_dump()} for step in chain]
    asked = [
        {step.kind: {k: v for k, v in each[step.kind].items() if step.origin[k] != "default"}}
        for step, each in zip(chain, full, strict=True)
    ]
    done = [*candidate.compressed, *([candidate.compared] if candidate.compared else [])]
    entry = {
        "name": candidate.name,
        "status": candidate.status,
        "error": candidate.error,
        "reused": bool(done) and all(stage.reused for stage in done),
        "steps": asked,
        "parameters": _parameters(chain),
        **_figures(description, candidate),
        "metrics": _metrics(candidate, floor),
        "notebooks": _notebooks(run, candidate),
    }
    if candidate.compared:
        pictures = evaluate.read(candidate.compared.result)[1]
        entry |= {name: pictures[name] for name in ("restored", "cache") if pictures.get(name)}
    if not chain:
        return entry | {
            "gates": [],
            "claims": [],
            "verdict": gates.NOT_MEASURED if candidate.error else gates.PASS,
            "grade": None,
        }
    return entry | gates.judge(
        candidate.name,
        full,
        entry["metrics"],
        entry,
        run.experiment.criteria,
        bool(candidate.error),
    )


def _parameters(chain: list) -> dict:
    """Effective value and origin of every parameter; keys that several steps have carry the step's number."""
    keys = [key for step in chain for key in step.origin]
    return {
        key if keys.count(key) == 1 else f"{number}.{key}": {
            "value": value,
            "from": step.origin[key],
        }
        for number, step in enumerate(chain, 1)
        for key, value in step.parameters.model_dump().items()
    }


def _figures(description: dict, candidate: Candidate) -> dict:
    steps = candidate.compressed
    last = meta(steps[-1].result)["result"] if steps and not candidate.error else {}
    if not candidate.steps and not candidate.error:
        last = {
            "bytes_on_disk": description["bytes"],
            "other_bytes": description["other_bytes"],
            "linear_bits": 32.0,
        }
    size = last.get("bytes_on_disk")
    made = [meta(stage.result)["result"] for stage in steps]
    return {
        "bytes_on_disk": size,
        "other_bytes": last.get("other_bytes"),
        "bits_per_weight": size and 8 * size / description["parameters"],
        "linear_bits": last.get("linear_bits"),
        "compression_ratio": size and description["bytes"] / size,
        "sparsity": last.get("sparsity", 0.0) if size else None,
        "compress_seconds": sum(m["compress_seconds"] for m in made) if made else None,
        "compress_peak_rss_bytes": max((m["compress_peak_rss_bytes"] for m in made), default=None),
        "kernel": "dequantized" if candidate.steps and "backend" not in last else "real",
        "backend": last.get("backend", "torch"),
        "layers": last.get("layers", []),
    }


def _metrics(candidate: Candidate, floor: dict) -> list[dict]:
    if not candidate.compared:
        return []
    empty = {"low": None, "high": None}
    return [
        {**row, "unit": METRICS[row["name"]].unit, "noise": floor.get(row["name"], empty)}
        for row in evaluate.read(candidate.compared.result)[0]
    ]


def _notebooks(run: Run, candidate: Candidate) -> dict[str, str]:
    folder = run.report / candidate.name
    made = {
        s["name"].partition("/")[2]
        for s in run.stages
        if s["name"].startswith(f"{candidate.name}/")
    }
    found = {title: f"{candidate.name}/{title}.ipynb" for title in sorted(made)}
    if candidate.error:
        partial = list(folder.glob("*.partial.ipynb"))
        found |= {
            path.name.removesuffix(".ipynb"): f"{candidate.name}/{path.name}" for path in partial
        }
    return found


def _texts() -> list[dict]:
    """The texts, with licence, digest and package (data/README.md says more)."""
    split = ("news.txt", "wiki.xml.bz2")
    return [
        {
            "name": name,
            "licence": TEXTS.licences.get(name, TEXTS.licence),
            "sha256": digest,
            "source": f"{TEXTS.requirement}: {TEXTS.origin}",
            "role": "calibration and evaluation, split by document"
            if name in split
            else "evaluation",
        }
        for name, (digest, _) in TEXTS.files.items()
    ]


def _manifest(run: Run) -> dict:
    installed = {
        d.metadata["Name"]: d.version
        for d in importlib.metadata.distributions()
        if d.metadata["Name"]
    }
    processor = machine()
    return {
        "run": run.id(),
        "kerf": kerf.__version__,
        "python": platform.python_version(),
        "packages": dict(sorted(installed.items())),
        "cpu": {key: processor[key] for key in ("model", "flags", "threads")}
        | {"governor": governor()},
        "seed": run.experiment.calibration.seed,
        "data": run.inputs
        | {name: digest for s in SOURCES.values() for name, (digest, _) in s.files.items()},
        "started": run.started,
        "seconds": time.perf_counter() - run.clock,
        "stages": run.stages,
        "digests": SUMS,
    }


def write(run: Run, results: dict, found: list[Candidate]) -> None:
    """results.json in the report's folder, and with the per-item scores in the history, where a run appears whole or not at all."""
    place = history(run.out) / run.name
    place.mkdir(parents=True, exist_ok=True)
    with scratch(".part-", place.parent) as aside:
        for candidate in (found[0], *found[2:]):
            if candidate.compared:
                shutil.copyfile(
                    candidate.compared.result / "items.parquet", aside / f"{candidate.name}.parquet"
                )
        write_json(aside / "results.json", results)
        record_digests(aside)
        replace_folder(aside, place / run.id())
    write_json(run.report / "results.json", results)
