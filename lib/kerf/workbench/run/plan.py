"""What a run will do: the parameters of every stage's notebook, and the checks before heavy work."""

import shutil
from importlib import import_module
from itertools import chain
from pathlib import Path

from kerf import evaluate, pipeline
from kerf.config import METHODS
from kerf.core.cache import artifact, digest, meta
from kerf.core.errors import InputError, refuse
from kerf.core.user_files import check_writable
from kerf.data import corpora
from kerf.models import families, registry
from kerf.workbench.run.experiment import Experiment, Step
from kerf.workbench.run.notebook_stage import check_parameters

FREE_BYTES = 200e6  # disk space for a run, in addition to three times the size of the model


def shared_parameters(experiment: Experiment) -> dict:
    """Parameters of every notebook."""
    return {"model": experiment.model, **experiment.calibration.model_dump()}


def step_parameters(experiment: Experiment, before: list[dict], step: Step) -> dict:
    """Parameters of the notebook that runs `step` after the steps `before`."""
    values = step.parameters.model_dump()
    own = {"step": values} if "method" in values else values
    return {**shared_parameters(experiment), "before": before, **own}


def compare_parameters(experiment: Experiment, steps: list[dict], noise: bool = False) -> dict:
    """Parameters of the notebook that measures a candidate; noise: the baseline, a second time."""
    own = {"steps": steps, "again": noise} | experiment.evaluation.model_dump()
    own["evaluation_texts"] = own.pop("texts")
    return shared_parameters(experiment) | own


def resources_parameters(experiment: Experiment, chains: dict[str, list[dict]]) -> dict:
    """Parameters of the notebook that measures what each candidate takes as a service."""
    assert experiment.resources
    own = {"candidates": chains, "criteria": experiment.deciding}
    own["evaluation"] = experiment.evaluation.model_dump()
    return shared_parameters(experiment) | own | experiment.resources.model_dump()


def inputs(experiment: Experiment) -> dict[str, str]:
    """Digests of all that stages read: weights, texts, and checkpoints that a step imports."""
    digests = {"weights": registry.weights_digest(registry.resolve(experiment.model))}
    for section in ("calibration", "evaluation"):
        digests[section] = corpora.digest(getattr(experiment, section).texts)
    for step in chain.from_iterable(experiment.candidates.values()):
        if step.kind == "quantize" and (imported := METHODS[step.parameters.method].imported):
            source = import_module(imported).fingerprint(step.parameters, experiment.calibration)
            digests[step.path] = digest(source)
    return digests


def check(experiment: Experiment, out: Path) -> dict:
    """Check what needs no heavy work; returns the model's description. Raises InputError with the path of the wrong value."""
    check_writable("--out", out)
    for section in ("calibration", "evaluation"):
        try:
            corpora.digest(getattr(experiment, section).texts)
        except InputError as refusal:
            raise InputError(f"{section}.{refusal}") from None
    description = registry.describe(experiment.model)
    needed, free = 3 * description["bytes"] + FREE_BYTES, shutil.disk_usage(out).free
    if free < needed:
        accepted = f"a disk with {needed / 1e6:.0f} MB free; this one has {free / 1e6:.0f} MB"
        raise refuse("--out", str(out), accepted)
    for steps in experiment.candidates.values():
        for number, step in enumerate(steps):
            _check_step(experiment, step, [earlier.values for earlier in steps[:number]])
            check_parameters(step.notebook, step_parameters(experiment, [], step))
    family = families.FAMILIES[description["kind"]]
    # The service benchmark reads sentences, whatever the kind of model.
    known = {*family.READS, *(["sentences"] if experiment.resources else [])}
    for key, value in experiment.evaluation.model_dump().items():
        if key not in known and experiment.origin[f"evaluation.{key}"] != "default":
            accepted = f"no key of {family.CALLED}, which {experiment.model} is; accepted: "
            raise refuse(f"evaluation.{key}", value, accepted + ", ".join(sorted(known)))
    if experiment.resources:
        registry.check_family(experiment.model, "resources", "encoder", "reranker")
        check_parameters("resources", resources_parameters(experiment, {}))
    check_parameters("calibrate", shared_parameters(experiment))
    check_parameters("compare", compare_parameters(experiment, []))
    return description | {"documents": _documents(experiment, description["kind"])}


def _check_step(experiment: Experiment, step: Step, before: list[dict]) -> None:
    """Refuse a step that the model cannot take after the steps `before`."""
    folder, parameters = registry.resolve(experiment.model), step.parameters
    learned = step.kind == "reconstruct"
    if learned:
        registry.check_family(experiment.model, step.path, "encoder", "causal")
    on_kernel = step.notebook == "kernels"
    by_sensitivity = getattr(parameters, "allocation", "uniform") == "sensitivity"
    if learned or by_sensitivity or on_kernel and parameters.min_cosine is not None:
        families.of(folder).check_held_back(folder, experiment.calibration)
    if getattr(parameters, "bits", None) == "mixed":
        registry.check_family(experiment.model, step.path, "encoder")
    try:
        pipeline.check(experiment.model, step.kind, parameters, before)
    except InputError as refusal:
        raise InputError(f"{step.path}.{refusal}") from None


def _documents(experiment: Experiment, kind: str) -> int:
    """Number of documents of the evaluation text, cached. Raises InputError for too little text, and for an overlap."""
    folder, calibration = registry.resolve(experiment.model), experiment.calibration

    def make(_: Path) -> dict:
        evaluation = evaluate.of_family(kind)
        texts = evaluation.gather(experiment.model, experiment.evaluation)
        corpora.check_overlap(families.of(folder).sample_texts(folder, calibration), texts.all)
        return {"documents": evaluation.documents(texts)}

    parts = (calibration, experiment.evaluation)
    data = [[corpora.digest(part.texts), part.model_dump()] for part in parts]
    key = {"weights": registry.weights_digest(folder), "data": data}
    code = ["kerf.evaluate", families.FAMILIES[kind].EVALUATION]
    return meta(artifact("checked", key, make, code=code))["result"]["documents"]
