"""results.json, assembled from the stages of a run. Its fields are a contract (schema 1)."""

import importlib.metadata
import itertools
import platform
import shutil
import time
from typing import Any

import kerf
from kerf.config import TEXT_KEYS
from kerf.core.atomic import write_json
from kerf.core.cache import machine, meta, replace_folder, threads
from kerf.core.scratch import scratch
from kerf.data import corpora, datasets
from kerf.data.downloads import BBC, QUESTIONS, SOURCES, TEXTS
from kerf.evaluate import gates
from kerf.evaluate.comparison_inputs import keyed
from kerf.evaluate.criteria import uses_of
from kerf.evaluate.metrics import METRICS
from kerf.models.coverage import LEAST
from kerf.profiling import footprint, serving_benchmark
from kerf.profiling.power import governor
from kerf.workbench.run.experiment import Experiment, Step
from kerf.workbench.run.history import RESULTS, SCHEMA, SUMS, history, record_digests
from kerf.workbench.run.runner import Candidate, Run

SPLIT: tuple[str, ...] = ("news.txt", "wiki.xml.bz2", "questions.jsonl", "piqa.jsonl", "siqa.jsonl")
SPLIT += ("commonsenseqa.jsonl", "bbc.jsonl")
TIMED = ["rss_peak_bytes", "load_seconds", "speedup"]
TIMED += ["prefill_tokens_per_second", "decode_tokens_per_second"]


def assemble(run: Run, description: dict, candidates: list[Candidate]) -> tuple[dict, dict]:
    """Content of results.json, and the data of pictures by candidate. candidates: as `Run.execute` returns them."""
    baseline, noise, *others = candidates
    noise_floor = _noise_floor(noise.measured[0])
    rows = [_row(run, description, candidate, noise_floor) for candidate in (baseline, *others)]
    experiment = run.experiment
    model_keys = ["id", "kind", "parameters", "bytes", "conventions"]
    model_keys += ["on_grid", "origin", "ignored_code"]
    results = {
        "schema": SCHEMA,
        "experiment": run.name,
        "verdict": gates.run_verdict(rows, experiment.release),
        "model": {key: description[key] for key in model_keys},
        "release": experiment.release,
        "criteria": list(experiment.criteria),
        "use": experiment.use,
        "uses": uses_of(next(iter(experiment.criteria.values()))),
        "grade_rule": gates.GRADE_RULE,
        "settings": _settings(experiment),
        "candidates": rows,
        "resources": _resources(run, rows),
        "texts": _texts(),
        "manifest": _manifest(run),
    }
    pictures = {candidate.name: candidate.measured[1] for candidate in others}
    similarities = {name: data for name, data in pictures.items() if "edges" in data}
    restored = {name: data["restored"] for name, data in pictures.items() if data.get("restored")}
    return results, {"similarities": similarities, "restored": restored}


def _resources(run: Run, rows: list[dict]) -> dict | None:
    """Figures of each candidate as a service, and the recommended one; None if they were not measured."""
    settings, stage = run.experiment.resources, run.service.compared
    if not settings:
        return None
    if not stage:
        return {"error": run.service.error} if run.service.error else None
    measured, vectors = footprint.read(stage.result)
    passed = {row["name"] for row in rows if row["verdict"] == gates.PASS} - {"baseline"}
    most = settings.memory_limit and settings.memory_limit * 1e6
    return {
        "rows": measured,
        "vectors": vectors,
        "noisy": serving_benchmark.noisy(measured),
        "memory_limit": settings.memory_limit,
        "threads": settings.threads or threads(),
        "rounds": settings.rounds,
        "recommended": serving_benchmark.recommended(measured, passed, most=most),
        "run": stage.run,
        "error": None,
    }


def _settings(experiment: Experiment) -> dict[str, dict]:
    """Value and origin of every setting that all candidates share, by its path in the experiment."""
    values: dict[str, Any] = {"model": experiment.model}
    for section in ("calibration", "evaluation", "resources"):
        if parameters := getattr(experiment, section):
            values |= {f"{section}.{key}": value for key, value in parameters.model_dump().items()}
    for path, value in values.items():
        if path.rpartition(".")[2] in TEXT_KEYS:
            names = [corpora.label(name) for name in corpora.names_of(value)]
            values[path] = names[0] if isinstance(value, str) else names
    origin = experiment.origin
    return {path: {"value": value, "from": origin[path]} for path, value in values.items()}


def _noise_floor(metrics: list[dict]) -> dict[tuple, dict]:
    """Range of each metric, by its name and domain, over both measurements of the baseline."""
    floor = {}
    for row in metrics:
        if row["value"] is not None and row["baseline"] is not None:
            # The interval of other metrics is about texts, and the noise is about the machine.
            keys = ("value", "baseline", *(("low", "high") if row["name"] in TIMED else ()))
            ends = [row[key] for key in keys if row[key] is not None]
            floor[row["name"], row.get("domain")] = {"low": min(ends), "high": max(ends)}
    return floor


def _row(run: Run, description: dict, candidate: Candidate, noise_floor: dict[tuple, dict]) -> dict:
    """What results.json holds of a candidate."""
    chain = run.experiment.candidates.get(candidate.name, [])
    metrics, pictures = candidate.measured
    for metric in metrics:
        metric["unit"] = METRICS[metric["name"]].unit
        place = metric["name"], metric.setdefault("domain", None)
        metric["noise"] = noise_floor.get(place, {"low": None, "high": None})
        metric |= _family(metric["domain"], run.experiment)
        if candidate.draws:
            metric["draws"] = _draws(metric, candidate)
    stages = candidate.compressed + ([candidate.compared] if candidate.compared else [])
    steps, parameters = _chain(chain)
    names = (stage["name"].split("/") for stage in run.stages)
    titles = sorted({title for folder, title in names if folder == candidate.name})
    if candidate.error:
        titles += [path.stem for path in (run.report / candidate.name).glob("*.partial.ipynb")]
    row = {
        "name": candidate.name,
        "status": candidate.status,
        "error": candidate.error,
        "reused": bool(stages) and all(stage.reused for stage in stages),
        "steps": steps,
        "parameters": parameters,
        **_figures(description, candidate),
        "metrics": metrics,
        "notebooks": {title: f"{candidate.name}/{title}.ipynb" for title in titles},
        **{key: pictures[key] for key in ("restored", "cache", "slices") if pictures.get(key)},
    }
    experiment, broken = run.experiment, bool(candidate.error)
    if not chain:
        verdict = gates.NOT_MEASURED if broken else gates.PASS
        uses = dict.fromkeys(uses_of(next(iter(experiment.criteria.values()))), verdict)
        return row | {"gates": [], "claims": [], "uses": uses, "verdict": verdict, "grade": None}
    full, asked = [step.values for step in chain], (experiment.criteria, experiment.use)
    return row | gates.judge(candidate.name, full, metrics, row, *asked, broken)


def _family(domain: str | None, experiment: Experiment) -> dict[str, Any]:
    """The source family of a domain, and whether calibration saw it."""
    if domain is None or domain in datasets.TASKS:
        return {}
    seen = {corpora.family_of(name) for name in corpora.names_of(experiment.calibration.texts)}
    values = experiment.evaluation.model_dump(include={*TEXT_KEYS})
    names = [name for value in values.values() for name in corpora.names_of(value)]
    family = next(corpora.family_of(name) for name in names if corpora.label(name) == domain)
    return {"family": family, "seen": family in seen}


def _draws(metric: dict, candidate: Candidate) -> list[float | None]:
    """The value of a metric in each candidate that another calibration sample gave, this one first."""
    others = [keyed(rows).get((metric["name"], metric["domain"])) for rows in candidate.of_draws]
    return [metric["value"], *(row["value"] if row else None for row in others)]


def _chain(chain: list[Step]) -> tuple[list[dict], dict[str, dict]]:
    """The steps without defaults; value and origin of every parameter, by key or, if several steps have it, NUMBER.KEY."""
    keys = [key for step in chain for key in step.origin]
    steps, parameters = [], {}
    for number, step in enumerate(chain, 1):
        values = step.values[step.kind]
        steps.append({step.kind: {k: v for k, v in values.items() if step.origin[k] != "default"}})
        for key, value in values.items():
            name = key if keys.count(key) == 1 else f"{number}.{key}"
            parameters[name] = {"value": value, "from": step.origin[key]}
    return steps, parameters


def _figures(description: dict, candidate: Candidate) -> dict:
    """Exact figures: sizes after the last step, time and memory of all steps."""
    made = [meta(stage.result)["result"] for stage in candidate.compressed]
    last = made[-1] if made and not candidate.error else {}
    if not candidate.steps and not candidate.error:
        last = {"bytes_on_disk": description["bytes"], "linear_bits": 32.0}
        last["other_bytes"] = description["other_bytes"]
    size, covered = last.get("bytes_on_disk"), last.get("coverage")
    seconds = [result["compress_seconds"] for result in made]
    peaks = [result["compress_peak_rss_bytes"] for result in made]
    return {
        **{key: last.get(key) for key in ("bytes_on_disk", "other_bytes", "linear_bits")},
        "bits_per_weight": size and 8 * size / description["parameters"],
        "compression_ratio": size and description["bytes"] / size,
        "sparsity": last.get("sparsity", 0.0) if size else None,
        "compress_seconds": sum(seconds) if made else None,
        "compress_peak_rss_bytes": max(peaks, default=None),
        "kernel": "dequantized" if candidate.steps and "backend" not in last else "real",
        "backend": last.get("backend", "torch"),
        "coverage": covered,
        "partial": covered["share"] < LEAST if covered else False,
        "layers": last.get("layers", []),
    }


def _texts() -> list[dict]:
    """The texts with licence, digest and package (data/README.md describes them)."""
    texts = []
    for source in (TEXTS, QUESTIONS, BBC):
        for name, (digest, _) in source.files.items():
            role = (
                "calibration and evaluation, split by document" if name in SPLIT else "evaluation"
            )
            text = {"name": name, "licence": source.licences.get(name, source.licence)}
            origin = f"{source.requirement}: {source.origin}"
            texts.append({**text, "sha256": digest, "source": origin, "role": role})
    return texts


def _manifest(run: Run) -> dict:
    installed = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    files = itertools.chain.from_iterable(source.files.items() for source in SOURCES.values())
    processor = {key: machine()[key] for key in ("model", "flags", "threads")}
    return {
        "run": run.id(),
        "kerf": kerf.__version__,
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in sorted(filter(None, installed))},
        "cpu": {**processor, "governor": governor()},
        "seed": run.experiment.calibration.seed,
        "data": run.inputs | {name: digest for name, (digest, _) in files},
        "started": run.started,
        "seconds": time.perf_counter() - run.clock,
        "stages": run.stages,
        "digests": SUMS,
    }


def write(run: Run, results: dict, candidates: list[Candidate]) -> None:
    """Write results.json into the report, and with the per-item scores into the history, atomically."""
    baseline, _, *others = candidates
    target = history(run.out) / run.name / run.id()
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch(".part-", history(run.out)) as aside:
        for candidate in (baseline, *others):
            if candidate.compared:
                items = candidate.compared.result / "items.parquet"
                shutil.copyfile(items, aside / f"{candidate.name}.parquet")
        write_json(aside / RESULTS, results)
        record_digests(aside)
        replace_folder(aside, target)
    write_json(run.report / RESULTS, results)
