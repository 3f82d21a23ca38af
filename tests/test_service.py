"""The switch of a service."""

import shutil

import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer
from support.small import write_model, write_reranker

import kerf
from kerf import pipeline
from kerf.config import Calibration
from kerf.core.errors import InputError
from kerf.models import manifest, registry

SPEC = Calibration(samples=16, max_length=64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small model, and a directory of candidates."""
    folder = tmp_path_factory.mktemp("service")
    model = str(write_model(folder / "model"))
    for name, step in {
        "int8": {"method": "static"},
        "int4": {"method": "weight_only", "bits": 4, "group_size": 32},
    }.items():
        shutil.copytree(
            pipeline.build(model, [{"quantize": step}], SPEC), folder / "candidates" / name
        )
    return model, folder / "candidates"


@pytest.fixture(scope="module")
def made_reranker(tmp_path_factory):
    """A small reranker, and a directory of candidates."""
    folder = tmp_path_factory.mktemp("service")
    model = str(write_reranker(folder / "model"))
    shutil.copytree(
        pipeline.build(model, [{"quantize": {"method": "static"}}], SPEC),
        folder / "candidates" / "int8",
    )
    return model, folder / "candidates"


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv("USE_QUANTIZATION", raising=False)
    monkeypatch.delenv("QUANTIZATION_CONFIG", raising=False)


@pytest.mark.parametrize(
    ("use", "config", "bits"),
    [
        (None, None, None),
        ("false", "int8", None),
        ("0", None, None),
        ("true", None, 8),
        ("TRUE", "int8", 8),
        ("1", "int4", 4),
        ("true", "none", None),
    ],
)
def test_two_variables_decide(made, monkeypatch, use, config, bits):
    for name, value in {"USE_QUANTIZATION": use, "QUANTIZATION_CONFIG": config}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    model, candidates = made
    opened = kerf.embedder(model, candidates)
    assert opened.encode(["A sentence."]).shape == (1, 64)
    if bits is None:
        assert isinstance(opened, SentenceTransformer)
    else:
        expected = registry.load(candidates / f"int{bits}").encode(["A sentence."])
        assert (opened.encode(["A sentence."]) == expected).all()


def test_the_reranker_is_switched_by_the_same_variables(made_reranker, monkeypatch):
    model, candidates = made_reranker
    assert isinstance(kerf.reranker(model, candidates), CrossEncoder)
    monkeypatch.setenv("USE_QUANTIZATION", "true")
    found, pairs = kerf.reranker(model, candidates), [("a query", "A passage."), ("another", "one")]
    assert (found.predict(pairs) == registry.load(candidates / "int8").predict(pairs)).all()
    assert len(found.rank("a query", ["A passage.", "Another one."], top_k=1)) == 1
    monkeypatch.setenv("QUANTIZATION_CONFIG", "int4")
    with pytest.raises(
        InputError,
        match="QUANTIZATION_CONFIG = 'int4': a candidate in .*; `kerf run reranker-int8` makes those of reranker",
    ):
        kerf.reranker(model, candidates)
    monkeypatch.setenv("QUANTIZATION_CONFIG", "none")
    assert isinstance(kerf.reranker(model, candidates), CrossEncoder)


def test_an_encoder_is_no_reranker(made, made_reranker, monkeypatch):
    with pytest.raises(
        InputError, match="model = .*: a reranker; kerf.reranker does not know encoders yet"
    ):
        kerf.reranker(made[0])
    monkeypatch.setenv("USE_QUANTIZATION", "true")
    for work, (model, candidates) in ((kerf.reranker, made), (kerf.embedder, made_reranker)):
        with pytest.raises(
            InputError,
            match="candidates = .*: candidates of an? (encoder|reranker); these are of an? (encoder|reranker)",
        ):
            work(model, candidates)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("USE_QUANTIZATION", "maybe", "true or false"),
        ("QUANTIZATION_CONFIG", "int3", "int8, int4 or none"),
        ("QUANTIZATION_CONFIG", "", "int8, int4 or none"),
    ],
)
def test_wrong_values_are_refused_with_the_accepted_ones(made, monkeypatch, name, value, accepted):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name} = {value!r}: {accepted}$"):
        kerf.embedder(*made)


def test_a_candidate_that_is_not_there_or_of_another_model_is_refused(made, monkeypatch, tmp_path):
    model, candidates = made
    monkeypatch.setenv("USE_QUANTIZATION", "true")
    with pytest.raises(
        InputError,
        match="QUANTIZATION_CONFIG = 'int8': a candidate in .*; `kerf run minilm-int8` makes",
    ):
        kerf.embedder(model, tmp_path)
    with pytest.raises(
        InputError,
        match=f"candidates = .*: candidates of minilm; these are of {manifest.verify(candidates / 'int8')['model']}",
    ):
        kerf.embedder("minilm", candidates)
