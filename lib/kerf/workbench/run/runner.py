"""The run: all stages in order, one at a time, because each of them measures time or memory.

Calibrate; measure the baseline, twice for the noise floor; run the steps and the comparison of every candidate; benchmark all
candidates as services, if the experiment has `resources`. A failed stage stops its own candidate only.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from kerf import evaluate
from kerf.core import atomic
from kerf.core.cache import digest, now, replace_folder
from kerf.core.errors import escaped
from kerf.core.paths import data_folder, root
from kerf.core.scratch import PREFIX, scratch, sweep
from kerf.workbench.run import plan
from kerf.workbench.run.experiment import Experiment
from kerf.workbench.run.notebook_stage import Stage, StageFailed, run_stage


@dataclass
class Candidate:
    """A candidate during a run: its finished steps with their stages, and its comparison."""

    name: str
    steps: list[dict] = field(default_factory=list)
    compressed: list[Stage] = field(default_factory=list)
    compared: Stage | None = None
    draws: list[Stage | None] = field(default_factory=list)  # comparisons of other samples
    error: dict | None = None
    status: str = "ok"  # or failed (one of its stages), or skipped (the baseline failed)

    @cached_property
    def measured(self) -> tuple[list[dict], dict]:
        """Metrics of the comparison, and the data of its pictures."""
        return evaluate.read(self.compared.result) if self.compared else ([], {})

    @property
    def of_draws(self) -> list[list[dict]]:
        """Metrics of the candidates that other calibration samples gave."""
        return [evaluate.read(stage.result)[0] if stage else [] for stage in self.draws]


class Run:
    """One run of an experiment into the folder `out`."""

    def __init__(self, experiment: Experiment, out: Path, fresh: bool, model: str | None) -> None:
        """fresh: reuse no earlier stage. model: named on the command line; its name or the end of its path follows '@'."""
        sweep_leftovers(out)
        self.experiment, self.out = experiment, out
        self.started, self.clock = now(), time.perf_counter()
        self.name = experiment.name
        if model:
            slug = re.sub(r"[^a-z0-9._-]+", "-", "-".join(Path(model).parts[-2:]).lower())
            self.name += f"@{slug.strip('-.')[:60] or 'model'}"
        self.report = out / "reports" / self.name
        self.stages: list[dict] = []
        self.inputs = plan.inputs(experiment)
        self.service = Candidate("baseline")  # the stage of `resources` belongs to no candidate
        chains = experiment.candidates.values()
        stages = experiment.calibration.draws * sum(len(chain) + 1 for chain in chains)
        self.total = 3 + stages + bool(experiment.resources)
        console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        hidden = not console.is_terminal
        self.bar = Progress(*columns, console=console, transient=True, disable=hidden)
        self.task = self.bar.add_task("", total=self.total)
        # Kernels inherit the root, and artifacts name the run that made them.
        os.environ |= {"KERF_ROOT": str(root()), "KERF_RUN": self.id()}
        os.environ["KERF_FRESH"] = self.started if fresh else ""

    def id(self) -> str:
        """Name of the run in the history: its start, and a hash of its inputs."""
        stamp = self.started[:19].replace("-", "").replace(":", "") + "Z"
        return f"{stamp}-{digest([self.name, self.inputs, self.started])[:8]}"

    def execute(self) -> list[Candidate]:
        """Run every stage. The first two results are the baseline and its second measurement."""
        baseline, noise = Candidate("baseline"), Candidate("baseline")
        candidates = [Candidate(name) for name in self.experiment.candidates]
        with self.bar:
            shared = plan.shared_parameters(self.experiment)
            if self._try(baseline, "calibrate", shared, "calibrate"):
                self._compare(baseline)
            if baseline.compared:
                self._compare(noise, noise_floor=True)
            if noise.error:
                baseline.error, baseline.status = noise.error, noise.status
            for candidate in candidates:
                if baseline.error:  # there is nothing to compare with
                    candidate.error, candidate.status = baseline.error, "skipped"
                else:
                    self._compress(candidate)
            chains = {done.name: done.steps for done in candidates if not done.error}
            if self.experiment.resources and chains:
                values = plan.resources_parameters(self.experiment, chains)
                self.service.compared = self._try(self.service, "resources", values, "resources")
        return [baseline, noise, *candidates]

    def _compress(self, candidate: Candidate) -> None:
        """Run the steps of a candidate, copy the compressed model to `data/runs`, and measure it."""
        candidate.compressed = self._steps(candidate)
        if candidate.error:
            return
        candidate.steps = [step.values for step in self.experiment.candidates[candidate.name]]
        target = self.out / "data" / "runs" / self.name / candidate.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch(".part-", target.parent) as aside:
            shutil.copytree(candidate.compressed[-1].result, aside, dirs_exist_ok=True)
            replace_folder(aside, target)
        self._compare(candidate)
        for draw in range(1, self.experiment.calibration.draws):
            if candidate.error:
                return
            other = Candidate(candidate.name, candidate.steps)  # its failure is not the candidate's
            if self._steps(other, draw):
                self._compare(other, draw=draw)
            candidate.draws.append(other.compared)

    def _steps(self, candidate: Candidate, draw: int = 0) -> list[Stage]:
        """The stages of a candidate's steps, from the calibration sample number `draw`; empty if one failed."""
        stages: list[Stage] = []
        before: list[dict] = []
        for number, step in enumerate(self.experiment.candidates[candidate.name], 1):
            parameters = plan.step_parameters(self.experiment, list(before), step, draw)
            title = f"{step.kind}-{number}" if number > 1 else step.kind
            stage = self._try(candidate, step.notebook, parameters, _of_draw(title, draw))
            if not stage:
                return []
            before.append(step.values)
            stages.append(stage)
        return stages

    def _compare(self, candidate: Candidate, noise_floor: bool = False, draw: int = 0) -> None:
        parameters = plan.compare_parameters(self.experiment, candidate.steps, noise_floor, draw)
        title = _of_draw("noise" if noise_floor else "compare", draw)
        candidate.compared = self._try(candidate, "compare", parameters, title)

    def _try(self, candidate: Candidate, notebook: str, values: dict, title: str) -> Stage | None:
        """Run a stage and publish its notebook as `title`; a failure is recorded in the candidate."""
        name, folder = f"{candidate.name}/{title}", self.report / candidate.name
        service = notebook == "resources"
        inputs = self.inputs | ({"criteria": digest(self.experiment.criteria)} if service else {})
        began = time.perf_counter()
        self.bar.update(self.task, description=name)
        stage = None
        try:
            stage = run_stage(notebook, values, inputs, folder / f"{title}.partial.ipynb")
            for path in (stage.notebook, stage.notebook.with_suffix(".html")):
                atomic.copy(path, folder / f"{title}{path.suffix}")
            about = {"seconds": stage.seconds, "reused": stage.reused, "run": stage.run}
            self.stages.append({"name": name, **about})
            note = "reused" if stage.reused else ""
        except StageFailed as error:
            candidate.error, candidate.status = error.error, "failed"
            note = f"failed: {error}"
        self.bar.advance(self.task)
        count, end = int(self.bar.tasks[0].completed), time.perf_counter()
        times = f"{end - began:.1f} s, {end - self.clock:.0f} s so far"
        line = f"[{count}/{self.total}] {name}: {times} {note}".rstrip()
        self.bar.console.print(escaped(line), markup=False)
        return stage


def _of_draw(title: str, draw: int) -> str:
    return f"{title}.draw-{draw + 1}" if draw else title


def sweep_leftovers(out: Path) -> None:
    """Remove what killed runs left in the cache, in `out` and in the system's temporary folder."""
    sweep(data_folder() / "cache", ".*")
    sweep(data_folder() / "sources", ".wheel-*")
    sweep(out, "data/runs/*/.part-*", "data/runs/*/.old-*")
    sweep(out, "reports/history/.part-*", "reports/history/*/.old-*")
    sweep(Path(tempfile.gettempdir()), f"{PREFIX}*")
