"""Experiment files: precedence, where values come from, and refusals before any work."""

import pytest

from kerf.data import corpora
from kerf.workbench.cli import main
from kerf.workbench.run import experiment

FILE = """
model: minilm
calibration: {samples: 64}
candidates:
  int4: [{quantize: {method: gptq, bits: 4, group_size: 64}}]
  twice: [{quantize: {bits: 8}}, {quantize: {bits: 4}}]
release: [int4]
criteria: [encoder]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return path


def read(path, *overrides):
    return experiment.read(str(path), list(overrides))


def test_precedence_and_origin(file):
    made = read(file, "calibration.seed=3", "int4.bits=3")
    assert (made.calibration.seed, made.origin["calibration.seed"]) == (3, "command line")
    assert (made.calibration.samples, made.origin["calibration.samples"]) == (64, "experiment")
    assert (made.calibration.max_length, made.origin["calibration.max_length"]) == (
        128,
        "model preset",
    )
    texts = (made.calibration.texts, made.origin["calibration.texts"])
    assert texts == (("questions", "news"), "default")
    (step,) = made.candidates["int4"]
    assert (step.parameters.bits, step.origin["bits"]) == (3, "command line")
    assert (step.parameters.method, step.origin["method"]) == ("gptq", "experiment")
    assert (step.parameters.clip, step.origin["clip"]) == ("none", "default")


def test_a_step_is_named_by_its_number_where_several_have_the_key(file):
    made = read(file, "twice.2.bits=5")
    assert [step.parameters.bits for step in made.candidates["twice"]] == [8, 5]


def test_the_use_is_the_first_of_the_criteria_or_what_is_named(file):
    assert read(file).use == ["drop-in"]
    assert read(file, "use=similarity").use == ["similarity"]
    assert read(file, "use=[re-index, drop-in, re-index]").use == ["re-index", "drop-in"]
    assert read(file, "criteria=[claims]").use == []


def test_model_of_the_command_line_wins(file):
    made = experiment.read(str(file), [], "some/model")
    assert (made.model, made.origin["model"]) == ("some/model", "command line")


def test_what_candidates_take_as_a_service_is_measured_where_it_is_asked_for(file):
    assert read(file).resources is None
    made = read(file, "resources.rounds=2")
    assert (
        made.resources.rounds,
        made.resources.memory_limit,
        made.origin["resources.rounds"],
    ) == (2, None, "command line")
    assert read(file, "resources.memory_limit=300").resources.rounds == 6


@pytest.mark.parametrize("name", experiment.names())
def test_shipped_experiments_are_valid(name):
    made = experiment.read(name)
    assert set(made.release) <= set(made.candidates)


def test_the_default_experiment_has_the_agreed_candidates():
    made = experiment.read("minilm")
    assert list(made.candidates) == [
        "int8",
        "int4-rtn",
        "int4-gptq",
        "int3-gptq",
        "int2-rtn",
        "int2-gptq",
        "int2-gptq-channel",
    ]
    asked = made.evaluation
    assert made.release == ["int8"] and asked.sentences >= 200 and asked.queries >= 1500
    families = {corpora.family_of(name) for name in asked.texts}
    assert families == {"news", "encyclopedia", "technical", "everyday"}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("int4.bits=0", "int4.1.bits = 0: a whole number from 2 to 8"),
        ("int4.bits=1", "int4.1.bits = 1: a whole number from 2 to 8"),
        ("int4.bits=9", "int4.1.bits = 9: a whole number from 2 to 8"),
        ("int4.bits=3.5", "int4.1.bits = 3.5: a whole number from 2 to 8"),
        ("int4.bits=two", "int4.1.bits = 'two': a whole number from 2 to 8"),
        (
            "int4.method=gtpq",
            "rtn, gptq, checkpoint, gptqmodel, static, dynamic, weight_only or bfloat16",
        ),
        ("int4.granularity=row", "tensor, channel or group"),
        ("int4.bit=4", "did you mean int4.bits"),
        ("int5.bits=4", "did you mean int4.bits"),
        ("twice.bits=4", "twice.1.bits or twice.2.bits"),
        ("calibration.sample=4", "did you mean calibration.samples"),
        ("calibration.samples=0", "calibration.samples = 0: a whole number from 1"),
        ("resources.rounds=0", "resources.rounds = 0: 1 to 100 fresh processes"),
        ("resources.memory_limit=-3", "resources.memory_limit = -3: MB above 0"),
        ("criteria=[encodr]", "did you mean encoder"),
        ("use=[dropin]", "did you mean drop-in"),
        ("use=[general-use]", "use = 'general-use': accepted: classification, drop-in, re-index"),
        ("use=[]", "a list of uses: drop-in, re-index"),
        ("use={drop-in: 3}", "a list of uses: drop-in, re-index"),
        ("use=[[3]]", "use = [3]: accepted"),
        ("release=[int3]", "did you mean int4"),
        ("release=[]", "a list of candidates"),
        ("nonsense", "PATH=VALUE"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(file, capsys, override, named):
    assert main(["check", str(file), "-p", override]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: minilm\ncandidates: {a: [", "line 2, column"),
        ("- a\n", "keys and values"),
        ("model: minilm\ncandidates: {}\n", "at least one"),
        ("model: minilm\ncandidates: {A b: [{quantize: {}}]}\n", "names of a-z"),
        ("model: minilm\ncandidates: {baseline: [{quantize: {}}]}\n", "not baseline"),
        ("model: minilm\ncandidates: {a: [{squeeze: {}}]}\n", "a kind of step"),
        ("model: minilm\ncandidates: {a: []}\n", "at least one"),
        ("model: minilm\nmodle: x\ncandidates: {a: [{quantize: {}}]}\n", "did you mean model"),
        ("candidates: {a: [{quantize: {}}]}\n", "kerf list models"),
        ("model: minilm\ncandidates: {a: [{quantize: {}}]}\ncalibration: 5\n", "calibration = 5"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, capsys, text, named):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert main(["check", str(path)]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1 and "Traceback" not in error


def test_an_unknown_experiment_offers_the_nearest(capsys):
    assert main(["check", "minilmm"]) == 2
    assert "did you mean minilm" in capsys.readouterr().err
