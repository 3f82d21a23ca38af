"""The run: stages in order, each alone on the machine, each candidate on its own.

calibrate once; measure the baseline, and again for the noise floor; then every candidate: its steps, its
comparison; at last, where the experiment asks for it, what each would take as a service. A stage that fails
stops its candidate only. Stages never run side by side: each of them reports time or memory.
"""

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from kerf import pipeline
from kerf.config import METHODS
from kerf.core.cache import artifact, digest, meta, now, replace_folder
from kerf.core.errors import InputError, escaped, refuse
from kerf.core.paths import data_folder, root
from kerf.core.scratch import PREFIX, scratch, sweep
from kerf.core.user_files import check_writable
from kerf.data import corpora
from kerf.models import families, registry
from kerf.workbench.run.experiment import Experiment
from kerf.workbench.run.notebook_stage import (
    FinishedStage,
    StageFailed,
    check_parameters,
    publish,
    run_stage,
)

FREE_BYTES = 200e6  # beside three times the model: what a run writes, generously


@dataclass
class Candidate:
    """What a run knows of a candidate so far."""

    name: str
    steps: list[dict]
    compressed: list[FinishedStage]
    compared: FinishedStage | None = None
    error: dict | None = None
    skipped: bool = False

    @property
    def status(self) -> str:
        """ok, failed (a stage of it broke) or skipped (the baseline broke, so nothing was tried)."""
        return "skipped" if self.skipped else "failed" if self.error else "ok"


def check(experiment: Experiment, out: Path) -> dict:
    """Everything that can be refused before heavy work. Returns the model's description."""
    check_writable("--out", out)
    _check_texts(experiment)
    description = registry.describe(experiment.model)
    _check_space(out, 3 * description["bytes"] + FREE_BYTES)
    for name, chain in experiment.candidates.items():
        for number, step in enumerate(chain, 1):
            _check_step(
                experiment,
                f"{name}.{number}",
                step,
                [{each.kind: each.parameters.model_dump()} for each in chain[: number - 1]],
            )
    _check_keys(experiment, description["kind"])
    if experiment.resources:
        registry.check_kind(experiment.model, "resources", "encoder", "reranker")
    for name, parameters in _all_parameters(experiment):
        check_parameters(name, parameters)
    return description | {"documents": _documents(experiment, description["kind"])}


def _documents(experiment: Experiment, kind: str) -> int:
    """Documents that the evaluation text comes from, found once. Raises InputError for too little text, and for an overlap."""
    folder, spec = registry.resolve(experiment.model), experiment.calibration

    def make(_: Path) -> dict:
        from kerf import evaluate  # waits for scipy, which a second check need not

        how = evaluate.of_family(kind)
        everything = how.gather(experiment.model, experiment.evaluation)
        corpora.check_overlap(families.of(folder).sample_texts(folder, spec), everything.all)
        return {"documents": how.documents(everything)}

    texts = [corpora.digest(each.texts) for each in (spec, experiment.evaluation)]
    key = {"weights": registry.weights_digest(folder), "texts": texts}
    key |= {"calibration": spec.model_dump(), "evaluation": experiment.evaluation.model_dump()}
    code = ["kerf.evaluate", families.FAMILIES[kind].EVALUATION]
    return meta(artifact("checked", key, make, code=code))["result"]["documents"]


def _check_texts(experiment: Experiment) -> None:
    for section in ("calibration", "evaluation"):
        try:
            corpora.digest(getattr(experiment, section).texts)
        except InputError as refusal:
            raise InputError(f"{section}.{refusal}") from None


def _check_keys(experiment: Experiment, kind: str) -> None:
    """Refuse keys of `evaluation` that were asked for and that nothing reads for a model of this kind."""
    # What candidates take as a service is measured on sentences, whatever the kind.
    reads = {*families.FAMILIES[kind].READS, *(["sentences"] if experiment.resources else [])}
    for key, value in experiment.evaluation.model_dump().items():
        if key not in reads and experiment.origin[f"evaluation.{key}"] != "default":
            accepted = f"no key of {families.FAMILIES[kind].CALLED}, which {experiment.model} is; accepted: {', '.join(sorted(reads))}"
            raise refuse(f"evaluation.{key}", value, accepted)


def _check_step(experiment: Experiment, path: str, step, before: list[dict]) -> None:
    """Refuse a step that the model cannot take after the steps `before`."""
    folder, asked = registry.resolve(experiment.model), step.parameters
    if step.kind == "reconstruct":
        registry.check_kind(experiment.model, path, "encoder", "causal")
    by_kernel = (
        step.kind == "quantize" and METHODS[asked.method].kernel and asked.min_cosine is not None
    )
    if (
        step.kind == "reconstruct"
        or by_kernel
        or getattr(asked, "allocation", "uniform") == "sensitivity"
    ):
        families.of(folder).check_held_back(folder, experiment.calibration)
    if getattr(asked, "bits", None) == "mixed":
        registry.check_kind(experiment.model, path, "encoder")
    try:
        pipeline.check(experiment.model, step.kind, asked, before)
    except InputError as refusal:
        raise InputError(f"{path}.{refusal}") from None


def _check_space(out: Path, needed: float) -> None:
    free = shutil.disk_usage(out).free
    if free < needed:
        raise refuse(
            "--out",
            str(out),
            f"a disk with {needed / 1e6:.0f} MB free; this one has {free / 1e6:.0f} MB",
        )


def _shared(experiment: Experiment) -> dict:
    spec = experiment.calibration
    return {
        "model": experiment.model,
        "texts": spec.texts,
        "samples": spec.samples,
        "max_length": spec.max_length,
        "seed": spec.seed,
    }


def _compare_parameters(experiment: Experiment, steps: list[dict], again: bool = False) -> dict:
    spec = experiment.evaluation
    measured = {"evaluation_texts": spec.texts, **spec.model_dump(exclude={"texts"})}
    return {**_shared(experiment), "steps": steps, **measured, "again": again}


def _step_parameters(experiment: Experiment, steps: list[dict], step) -> dict:
    values = step.parameters.model_dump()
    return {
        **_shared(experiment),
        "before": steps,
        **({"step": values} if "method" in values else values),
    }


def _resources_parameters(experiment: Experiment, chains: dict[str, list[dict]]) -> dict:
    criteria = {"evaluation": experiment.evaluation.model_dump(), "criteria": experiment.deciding}
    return {
        **_shared(experiment),
        "candidates": chains,
        **criteria,
        **experiment.resources.model_dump(),
    }


def _all_parameters(experiment: Experiment):
    yield "calibrate", _shared(experiment)
    yield "compare", _compare_parameters(experiment, [])
    for chain in experiment.candidates.values():
        for step in chain:
            yield step.notebook, _step_parameters(experiment, [], step)
    if experiment.resources:
        yield "resources", _resources_parameters(experiment, {})


def _elsewhere(experiment: Experiment) -> dict[str, str]:
    """Digests of what steps take from outside, a checkpoint for one."""
    found = {}
    for name, chain in experiment.candidates.items():
        for number, step in enumerate(chain, 1):
            if step.kind == "quantize" and METHODS[step.parameters.method].imported:
                imported = import_module(METHODS[step.parameters.method].imported)
                found[f"{name}.{number}"] = digest(
                    imported.fingerprint(step.parameters, experiment.calibration)
                )
    return found


class Run:
    """One run of an experiment into the folder `out`."""

    def __init__(
        self, experiment: Experiment, out: Path, fresh: bool = False, slug: str = ""
    ) -> None:
        """fresh: make everything again. slug: what stands behind '@' when the model is not the file's own."""
        sweep_leftovers(out)
        self.experiment = experiment
        self.started, self.clock = now(), time.perf_counter()
        self.name = f"{experiment.name}@{slug}" if slug else experiment.name
        self.report, self.models = out / "reports" / self.name, out / "data" / "runs" / self.name
        self.out, self.stages = out, []
        self.inputs = {
            "weights": registry.weights_digest(registry.resolve(experiment.model)),
            "calibration": corpora.digest(experiment.calibration.texts),
            "evaluation": corpora.digest(experiment.evaluation.texts),
            **_elsewhere(experiment),
        }
        self.service = Candidate(
            "baseline", [], []
        )  # its stage is of all candidates, its failure nobody's
        self.total = (
            3
            + sum(len(chain) + 1 for chain in experiment.candidates.values())
            + bool(experiment.resources)
        )
        # Kernels may run anywhere, and what they make names the run that made it.
        os.environ |= {"KERF_ROOT": str(root()), "KERF_RUN": self.id()}
        if fresh:
            os.environ["KERF_FRESH"] = self.started
        else:
            os.environ.pop("KERF_FRESH", None)

    def execute(self) -> list[Candidate]:
        """Run every stage; the first two candidates are the baseline and its second measurement."""
        baseline, noise = Candidate("baseline", [], []), Candidate("baseline", [], [])
        candidates = [Candidate(name, [], []) for name in self.experiment.candidates]
        with _Progress(self.total) as self.progress:
            calibrated = self._try(baseline, "calibrate", _shared(self.experiment))
            baseline.compared = calibrated and self._compare(baseline)
            noise.compared = baseline.compared and self._compare(noise, again=True)
            baseline.error = baseline.error or noise.error
            for candidate in candidates:
                if baseline.error:  # nothing to compare with
                    candidate.error, candidate.skipped = baseline.error, True
                else:
                    self._one(candidate)
            chains = {
                candidate.name: candidate.steps for candidate in candidates if not candidate.error
            }
            if self.experiment.resources and chains:
                self.service.compared = self._try(
                    self.service, "resources", _resources_parameters(self.experiment, chains)
                )
        return [baseline, noise, *candidates]

    def _one(self, candidate: Candidate) -> None:
        for number, step in enumerate(self.experiment.candidates[candidate.name], 1):
            title = f"{step.kind}-{number}" if number > 1 else step.kind
            done = self._try(
                candidate,
                step.notebook,
                _step_parameters(self.experiment, list(candidate.steps), step),
                title,
            )
            if not done:
                return
            candidate.steps.append({step.kind: step.parameters.model_dump()})
            candidate.compressed.append(done)
        copy_folder(done.result, self.models / candidate.name)
        candidate.compared = self._compare(candidate)

    def _compare(self, candidate: Candidate, again: bool = False) -> FinishedStage | None:
        parameters = _compare_parameters(self.experiment, candidate.steps, again)
        return self._try(candidate, "compare", parameters, "noise" if again else "compare")

    def _try(
        self, candidate: Candidate, notebook: str, parameters: dict, title: str = ""
    ) -> FinishedStage | None:
        """Run a stage and publish its notebook; a failure is noted on the candidate."""
        title = title or notebook
        folder = self.report / candidate.name
        self.progress.start(f"{candidate.name}/{title}")
        try:
            judged_by = (
                {"criteria": digest(self.experiment.criteria)} if notebook == "resources" else {}
            )
            done = run_stage(
                notebook, parameters, self.inputs | judged_by, folder / f"{title}.partial.ipynb"
            )
        except StageFailed as error:
            candidate.error = error.error
            self.progress.finish(f"failed: {error}")
            return None
        publish(done, folder, title)
        self.stages.append(
            {
                "name": f"{candidate.name}/{title}",
                "seconds": done.seconds,
                "reused": done.reused,
                "run": done.run,
            }
        )
        self.progress.finish("reused" if done.reused else "")
        return done

    def id(self) -> str:
        """Start and a hash of what was asked: the run's name in the history."""
        stamp = self.started[:19].replace("-", "").replace(":", "") + "Z"
        return f"{stamp}-{digest([self.name, self.inputs, self.started])[:8]}"


def copy_folder(source: Path, target: Path) -> None:
    """Replace `target` by a copy of `source`; at every moment one of the two is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch(".part-", target.parent) as aside:
        shutil.copytree(source, aside, dirs_exist_ok=True)
        replace_folder(aside, target)


def sweep_leftovers(out: Path) -> None:
    """Remove what killed runs left in the cache, in `out` and in the system's temporary folder."""
    sweep(data_folder() / "cache", ".*")
    sweep(data_folder() / "sources", ".wheel-*")
    sweep(
        out,
        "data/runs/*/.part-*",
        "data/runs/*/.old-*",
        "reports/history/.part-*",
        "reports/history/*/.old-*",
    )
    sweep(Path(tempfile.gettempdir()), f"{PREFIX}*")


class _Progress:
    """A bar over stages with the time so far on a terminal; one line a finished stage everywhere."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self.bar = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self.task = self.bar.add_task("", total=total)
        self.total, self.count, self.clock = total, 0, time.perf_counter()

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def start(self, title: str) -> None:
        """A stage begins."""
        self.title, self.began = title, time.perf_counter()
        self.bar.update(self.task, description=title)

    def finish(self, note: str) -> None:
        """The stage that began last has ended."""
        self.count += 1
        self.bar.advance(self.task)
        took, total = time.perf_counter() - self.began, time.perf_counter() - self.clock
        self.bar.console.print(
            escaped(
                f"[{self.count}/{self.total}] {self.title}: {took:.1f} s, {total:.0f} s so far {note}".rstrip()
            ),
            markup=False,
        )
