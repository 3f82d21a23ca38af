"""`kerf.compress` and `kerf.compare`: what a run does, in one call."""

from pathlib import Path

import pytest
from support.small import write_model

import kerf
from kerf import evaluate, pipeline
from kerf.config import Calibration, Evaluation
from kerf.core.errors import InputError

SAMPLE = {"samples": 24, "max_length": 64}
MEASURED = {
    "texts": ["news", "everyday"],
    "sentences": 40,
    "retrieval": ["news"],
    "queries": 40,
    "passages": 40,
    "classification": [],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model") / "m"))


@pytest.fixture(scope="module")
def small(model):
    return kerf.compress(model, method="gptq", bits=3, group_size=32, **SAMPLE)


def test_a_model_is_compressed_as_a_run_would(model, small):
    step = {"quantize": {"method": "gptq", "bits": 3, "group_size": 32}}
    assert small.artifact == pipeline.build(model, [step], Calibration(**SAMPLE))
    assert small.encode(["A cat sat."]).shape == kerf.open_model(model).encode(["A cat sat."]).shape


def test_a_kernel_and_pruning_are_methods_like_others(model):
    served = kerf.compress(model, method="dynamic", **SAMPLE)
    assert served.artifact and served.encode(["A cat sat."]).shape[0] == 1
    pruned = kerf.compress(model, method="magnitude", sparsity=0.5, **SAMPLE)
    assert (
        float((pruned[0].auto_model.encoder.layer[0].output.dense.weight == 0).float().mean())
        >= 0.5
    )


def test_a_candidate_against_the_model_is_what_a_run_measures(model, small):
    found = kerf.compare(model, small, **MEASURED).loc["cosine_mean"]
    rows = evaluate.read(evaluate.compare(model, small.artifact, Evaluation(**MEASURED)))[0]
    rows = [row for row in rows if row["name"] == "cosine_mean"]
    assert found.value.tolist() == [row["value"] for row in rows]
    assert sorted(found.domain) == ["everyday", "news"] and found.low.iloc[0] <= found.low.iloc[1]
    assert ((found.low < found.value) & (found.value < found.high)).all()


def test_two_candidates_are_paired(model, small):
    wide = kerf.compress(model, method="rtn", bits=8, **SAMPLE)
    found = kerf.compare(small.artifact, wide, **MEASURED)
    cosines = found.loc["cosine_mean"]
    assert (cosines.winner == "b").all() and (cosines.low > 0).all() and len(cosines) == 2
    assert found.loc["bytes_on_disk", "winner"] == "a"
    turned = kerf.compare(small, model, **MEASURED)  # the model itself as the second
    cosines = turned.loc["cosine_mean"]
    assert (cosines.winner == "b").all() and (cosines.b > 0.9999).all()


def test_documents_may_be_given_as_they_are(model):
    documents = [f"Sentence {number} of a text about {word}s and other things. It has a second one." for number in range(60)
                 for word in ("cat", "house", "river", "engine")]  # fmt: skip
    found = kerf.compress(model, documents, "rtn", bits=4, **SAMPLE)
    assert found.artifact == kerf.compress(model, iter(documents), "rtn", bits=4, **SAMPLE).artifact


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: kerf.compress(model, method="gtpq"), "method = 'gtpq': magnitude, wanda"),
        (
            lambda model: kerf.compress(model, method="rtn", sweeps=1),
            "sweeps = 1: no key of method rtn",
        ),
        (lambda model: kerf.compress(model, samples=0), "calibration.samples = 0"),
        (lambda model: kerf.compress(model, "nowhere.txt"), "texts = 'nowhere.txt': a text file"),
        (lambda model: kerf.compare(model, 3), "model = 'int': a name, a directory, or what"),
        (lambda model: kerf.compare(model, "minilm"), "b = 'minilm': a candidate of"),
        (lambda model: kerf.compare(model, model, sentences=0), "evaluation.sentences = 0"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(model, call, said):
    with pytest.raises(InputError) as refusal:
        call(model)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_directory_is_one_model_however_it_is_written(model, monkeypatch):
    monkeypatch.chdir(Path(model).parent)
    name = Path(model).name
    small = kerf.compress(f"./{name}", method="rtn", bits=8, **SAMPLE)
    for a in (model, name, Path(name)):
        assert (kerf.compare(a, small, **MEASURED).loc["cosine_mean", "value"] > 0.99).all()
    assert (kerf.compare(small, model, **MEASURED).loc["cosine_mean", "b"] > 0.9999).all()
