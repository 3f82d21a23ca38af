"""What a run will do: the parameters of every stage's notebook, and the checks before heavy work."""

import shutil
from importlib import import_module
from itertools import chain
from pathlib import Path

from kerf import evaluate, pipeline
from kerf.config import METHODS, TEXT_KEYS, Evaluation
from kerf.core.cache import artifact, digest, meta
from kerf.core.errors import InputError, listed, refuse
from kerf.core.user_files import check_writable
from kerf.data import corpora, datasets
from kerf.data.bundled import TEXTS
from kerf.data.overlap import check_overlap
from kerf.evaluate.common import text_digest
from kerf.models import families, registry
from kerf.workbench.run.experiment import Experiment, Step
from kerf.workbench.run.notebook_stage import check_parameters

FREE_BYTES = 200e6  # disk space for a run, in addition to three times the size of the model


def shared_parameters(experiment: Experiment, draw: int = 0) -> dict:
    """Parameters of every notebook; draw: number of the calibration sample."""
    return {"model": experiment.model, **experiment.calibration.of_draw(draw).key()}


def step_parameters(experiment: Experiment, before: list[dict], step: Step, draw: int = 0) -> dict:
    """Parameters of the notebook that runs `step` after the steps `before`."""
    values = step.parameters.model_dump()
    own = {"step": values} if "method" in values else values
    return {**shared_parameters(experiment, draw), "before": before, **own}


def compare_parameters(
    experiment: Experiment, steps: list[dict], noise: bool = False, draw: int = 0
) -> dict:
    """Parameters of the notebook that measures a candidate; noise: the baseline, a second time."""
    evaluation = experiment.evaluation.model_dump(mode="json")
    own = {"steps": steps, "again": noise, "evaluation": evaluation}
    return shared_parameters(experiment, draw) | own


def resources_parameters(experiment: Experiment, chains: dict[str, list[dict]]) -> dict:
    """Parameters of the notebook that measures what each candidate takes as a service."""
    assert experiment.resources
    own = {"candidates": chains, "criteria": experiment.deciding, "use": experiment.use}
    own["evaluation"] = experiment.evaluation.model_dump(mode="json")
    return shared_parameters(experiment) | own | experiment.resources.model_dump()


def inputs(experiment: Experiment) -> dict[str, str]:
    """Digests of all that stages read: weights, texts, and checkpoints that a step imports."""
    digests = {"weights": registry.weights_digest(registry.resolve(experiment.model))}
    digests["calibration"] = corpora.digest(experiment.calibration.texts)
    digests["evaluation"] = text_digest(experiment.evaluation)
    for step in chain.from_iterable(experiment.candidates.values()):
        if step.kind == "quantize" and (imported := METHODS[step.parameters.method].imported):
            source = import_module(imported).fingerprint(step.parameters, experiment.calibration)
            digests[step.path] = digest(source)
    return digests


def check(experiment: Experiment, out: Path) -> dict:
    """Check what needs no heavy work; returns the model's description. Raises InputError with the path of the wrong value."""
    check_writable("--out", out)
    for section in ("calibration", "evaluation"):
        own = [n for n in corpora.names_of(getattr(experiment, section).texts) if n not in TEXTS]
        try:
            corpora.digest(own)  # bundled text takes seconds, and is there
        except InputError as refusal:
            raise InputError(f"{section}.{refusal}") from None
    _check_labels(experiment.evaluation)
    description = registry.describe(experiment.model)
    family = families.FAMILIES[description["kind"]]
    _check_domains(experiment, "texts" if "texts" in family.READS else "retrieval")
    if experiment.deciding in families.FAMILIES and experiment.deciding != family.NAME:
        accepted = f"{family.NAME} or a file of your own: {experiment.model} is {family.CALLED}"
        raise refuse("criteria", experiment.deciding, accepted)
    needed, free = 3 * description["bytes"] + FREE_BYTES, shutil.disk_usage(out).free
    if free < needed:
        accepted = f"a disk with {needed / 1e6:.0f} MB free; this one has {free / 1e6:.0f} MB"
        raise refuse("--out", str(out), accepted)
    for steps in experiment.candidates.values():
        for number, step in enumerate(steps):
            _check_step(experiment, step, [earlier.values for earlier in steps[:number]])
            check_parameters(step.notebook, step_parameters(experiment, [], step))
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


def _check_labels(evaluation: Evaluation) -> None:
    """Refuse two files of one name: the report could not tell them apart."""
    labels: dict[str, str] = {name: name for name in datasets.TASKS}
    for key in TEXT_KEYS:
        for name in corpora.names_of(getattr(evaluation, key)):
            if labels.setdefault(label := corpora.label(name), name) != name:
                accepted = f"files of different names; {label} stands there twice"
                raise refuse(f"evaluation.{key}", label, accepted)


def _check_domains(experiment: Experiment, key: str) -> None:
    """Refuse an evaluation without any source family that calibration did not see."""
    seen = {corpora.family_of(name) for name in corpora.names_of(experiment.calibration.texts)}
    names = corpora.names_of(getattr(experiment.evaluation, key))
    if experiment.evaluation.same_domain or {corpora.family_of(name) for name in names} - seen:
        return
    accepted = (
        f"text of at least one family that calibration did not see ({listed(sorted(seen), 'and')} "
        "it did), or same_domain: true, which the report then says"
    )
    raise refuse(f"evaluation.{key}", ", ".join(names), accepted)


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
        for draw in range(calibration.draws):
            sample = calibration.of_draw(draw)
            check_overlap(families.of(folder).sample_texts(folder, sample), texts.all)
        return {"documents": evaluation.documents(texts)}

    spec = experiment.evaluation
    digests = [corpora.digest(calibration.texts), text_digest(spec)]
    data = [calibration.model_dump(), spec.model_dump(), *digests]
    key = {"weights": registry.weights_digest(folder), "data": data}
    code = ["kerf.evaluate", families.FAMILIES[kind].EVALUATION]
    return meta(artifact("checked", key, make, code=code))["result"]["documents"]
