"""What a service feels: fresh processes in turn, and which candidate to take."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support.small import write_causal, write_model, write_reranker

from kerf import pipeline
from kerf.config import Calibration, Evaluation, Resources, parse
from kerf.core.errors import InputError
from kerf.data import corpora
from kerf.models import registry
from kerf.profiling import footprint, power, serving_benchmark, vector_quantization
from kerf.workbench.run import results


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model") / "m"))


@pytest.fixture(scope="module")
def asked(model):
    opened = registry.open_model(model)
    sentences = corpora.evaluation_sentences("news", 40)[0]
    return {16: footprint.of_length(opened, sentences, 16, 32)}


@pytest.fixture(scope="module")
def candidate(model):
    return pipeline.build(
        model, [{"quantize": {"method": "static"}}], Calibration(samples=16, max_length=64)
    )


def test_texts_have_the_length_that_was_asked(model, asked):
    opened = registry.open_model(model)
    lengths = [len(opened.tokenizer(text)["input_ids"]) for text in asked[16]]
    assert len(set(asked[16])) == 32 and max(lengths) == 16 and min(lengths) >= 12


def test_every_model_has_its_figures_and_a_dead_one_its_reason(model, asked, candidate, tmp_path):
    rows = serving_benchmark.measure(
        model, 1, asked, {"int8": candidate, "gone": tmp_path / "nowhere"}, rounds=1
    )
    assert {row["model"] for row in rows} == {"baseline", "baseline again", "int8", "gone"}
    failed = [row for row in rows if row["measure"] == "failed"]
    assert [row["model"] for row in failed] == ["gone"] and "ended with" in failed[0]["note"]
    value = {(row["model"], row["measure"]): row for row in rows if row["measure"] != "failed"}
    assert all(row["value"] > 0 and row["ratio"] > 0 for row in value.values())
    assert all(row["ratio"] == 1 for (name, _), row in value.items() if name == "baseline")
    for name in ("baseline", "int8"):
        first = value[name, "until the first answer"]["value"]
        parts = [value[name, part]["value"] for part in ("import", "load, cold", "first call")]
        assert max(parts) <= first <= 1.5 * sum(parts)
        assert (
            value[name, "own memory"]["value"]
            <= value[name, "resident memory"]["value"]
            <= 1.01 * value[name, "peak memory"]["value"]
        )
        assert value[name, "throughput, 8 x 16 tokens"]["value"] == pytest.approx(
            8 / value[name, "latency, 8 x 16 tokens"]["value"]
        )
    assert value["int8", "peak memory"]["ratio"] < 0.7
    assert (
        value["int8", "resident memory"]["ratio"] < 0.6 and value["int8", "import"]["ratio"] < 0.5
    )  # without torch


@pytest.mark.skipif(
    not hasattr(os, "posix_fadvise"), reason="the system cannot be told to forget a file"
)
def test_files_are_forgotten_and_whole(candidate):
    before = {path.name: path.read_bytes() for path in candidate.rglob("*") if path.is_file()}
    assert serving_benchmark.forget(candidate)
    assert {
        path.name: path.read_bytes() for path in candidate.rglob("*") if path.is_file()
    } == before


def test_one_thread_answers_too_where_there_are_more(model, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # which `profile` changes
    opened = registry.open_model(model)
    lines = corpora.evaluation_sentences("news", 40)[0]
    given = {
        str(length): footprint.of_length(opened, lines, length, 32)
        for length in (16, serving_benchmark.ALONE)
    }
    found = serving_benchmark.profile(
        {"model": model, "candidate": "", "threads": 2, "texts": given}
    )
    assert {name for name in found if "one thread" in name} == {
        f"{what}, {batch} x 64 tokens, one thread"
        for what in ("latency", "throughput")
        for batch in serving_benchmark.BATCHES
    }
    assert min(found.values()) > 0
    assert not [
        name
        for name in serving_benchmark.profile(
            {"model": model, "candidate": "", "threads": 1, "texts": given}
        )
        if "one thread" in name
    ]


def test_a_reranker_answers_pairs_of_the_length_that_was_asked(tmp_path):
    reranker = str(write_reranker(tmp_path / "reranker"))
    opened = registry.open_model(reranker)
    pairs = footprint.of_length(opened, corpora.evaluation_sentences("news", 40)[0], 16, 32)
    lengths = [len(opened.tokenizer(*pair)["input_ids"]) for pair in pairs]
    assert (
        len(set(pairs)) == 32
        and max(lengths) == 16
        and min(lengths) >= 12
        and all(query and passage for query, passage in pairs)
    )
    candidate = pipeline.build(
        reranker, [{"quantize": {"method": "dynamic"}}], Calibration(samples=16, max_length=64)
    )
    rows = serving_benchmark.measure(reranker, 1, {16: pairs}, {"int8": candidate}, rounds=1)
    assert {row["model"] for row in rows} == {"baseline", "baseline again", "int8"} and all(
        row["value"] > 0 for row in rows
    )


def test_what_has_no_sentences_to_encode_is_refused(tmp_path):
    causal = str(write_causal(tmp_path / "causal"))
    with pytest.raises(
        InputError,
        match="an encoder or a reranker; resources does not know causal language models yet",
    ):
        footprint.measure(causal, {}, Calibration(), Evaluation(), Resources())


@pytest.mark.parametrize(
    "values",
    [
        {"rounds": 0},
        {"rounds": 6.5},
        {"threads": 0},
        {"memory_limit": 0},
        {"memory_limit": float("nan")},
        {"round": 6},
    ],
)
def test_wrong_resources_are_refused_by_name(values):
    with pytest.raises(InputError, match=f"resources.{next(iter(values))} = "):
        parse(Resources, values, "resources")


def test_a_baseline_that_does_not_agree_with_itself_is_noisy():
    rows = [
        row(model, measure, 1, low)
        for model in ("baseline again", "int8")
        for measure, low in (("a", 0.95), ("b", 0.7), ("c", None))
    ]
    rows[0]["ratio_high"] = rows[1]["ratio_high"] = 1.05
    rows[2]["ratio_high"] = None
    assert serving_benchmark.noisy([*rows, {"model": "int4", "measure": "failed", "note": ""}]) == [
        "b",
        "c",
    ]


def row(model, measure, ratio, low, value=1.0):
    return {
        "model": model,
        "measure": measure,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": ratio,
        "value": value,
    }


@pytest.mark.parametrize(
    ("passed", "most", "best"),
    [
        ({"fast", "small", "same"}, None, "fast"),
        ({"fast", "small", "same"}, 100, "small"),
        ({"same"}, None, None),
        (set(), None, None),
        ({"fast"}, 100, None),
        ({"fast", "absent"}, None, "fast"),
    ],
)
def test_the_fastest_that_may_be_used_and_fits_is_recommended(passed, most, best):
    speed, memory = "throughput, 32 x 64 tokens", "resident memory"
    rows = [
        row("fast", speed, 3, 2.5),
        row("small", speed, 2, 1.8),
        row("same", speed, 1.2, 0.9),
        row("fast", memory, 1, 1, 200),
        row("small", memory, 1, 1, 90),
        row("same", memory, 1, 1, 50),
    ]
    assert serving_benchmark.recommended(rows, passed, most=most) == best


@pytest.mark.parametrize(("limit", "best"), [(None, "int8"), (100.0, "int4"), (10.0, None)])
def test_a_run_recommends_of_what_passed_under_the_limit(tmp_path, monkeypatch, limit, best):
    speed, memory = "throughput, 32 x 64 tokens", "resident memory"
    measured = [
        row("int8", speed, 3, 2.5),
        row("int4", speed, 2, 1.8),
        row("fastest", speed, 9, 8),
        row("baseline", speed, 1, 1),
        *(
            row(name, memory, 1, 1, size)
            for name, size in (("int8", 200e6), ("int4", 90e6), ("fastest", 1e6), ("baseline", 1e6))
        ),
    ]
    monkeypatch.setattr(footprint, "read", lambda folder: (measured, []))
    done = SimpleNamespace(result=tmp_path, run="a run")
    run = SimpleNamespace(
        experiment=SimpleNamespace(resources=Resources(memory_limit=limit)),
        service=SimpleNamespace(compared=done, error=None),
    )
    judged = [
        {"name": name, "verdict": verdict}
        for name, verdict in (
            ("baseline", "PASS"),
            ("int8", "PASS"),
            ("int4", "PASS"),
            ("fastest", "FAIL"),
        )
    ]
    assert results._resources(run, judged)["recommended"] == best
    run.experiment.resources = None
    assert results._resources(run, judged) is None


def test_a_process_says_why_it_ended(tmp_path):
    request = tmp_path / "request.json"
    request.write_text(
        json.dumps({"model": "minilm", "candidate": str(tmp_path), "texts": {}, "threads": 1})
    )
    done = subprocess.run(
        [sys.executable, "-m", "kerf.profiling.serving_benchmark", str(request)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode and "this one is no model" in done.stderr


def vectors_of(count, seed):
    rows = np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32) + np.linspace(
        -0.5, 0.5, 64, dtype=np.float32
    )
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_small_vectors_find_what_they_should():
    corpus = vectors_of(400, 0)
    queries = corpus[:50] + 0.3 * vectors_of(50, 1)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    rows = {
        (r["precision"], r["rescored"]): r
        for r in vector_quantization.measure(
            queries, corpus, vectors_of(300, 2), np.arange(50), rounds=1
        )
    }
    assert [rows[name, False]["bytes"] for name in vector_quantization.PRECISIONS] == [
        256e6,
        64e6,
        8e6,
    ]
    assert rows["float32", False]["recall"] == 1 and rows["int8", True]["recall"] > 0.95
    assert (
        rows["ubinary", False]["recall"]
        < rows["ubinary", True]["recall"]
        < rows["int8", False]["recall"]
    )
    assert all(
        r["low"] <= r["recall"] <= r["high"] and r["milliseconds"] > 0 for r in rows.values()
    )


def test_small_vectors_stand_for_values_near_the_real_ones():
    corpus, calibration = vectors_of(200, 0), vectors_of(5000, 3)
    found = vector_quantization.values(
        vector_quantization.small(corpus, "int8", calibration), "int8", calibration
    )
    step = (calibration.max(0) - calibration.min(0)) / 255
    inside = (corpus > calibration.min(0)) & (corpus < calibration.max(0))
    assert inside.mean() > 0.99 and (np.abs(found - corpus) <= 0.51 * step)[inside].all()
    signs = vector_quantization.values(
        vector_quantization.small(corpus, "ubinary", calibration), "ubinary", calibration
    )
    assert np.array_equal(signs > 0, corpus > 0)
    nearest = vector_quantization.search(
        corpus[:5],
        vector_quantization.small(corpus, "ubinary", calibration),
        "ubinary",
        calibration,
        False,
    )
    obvious = [np.argsort((signs[place] != signs).sum(1), kind="stable")[:10] for place in range(5)]
    assert np.array_equal(nearest, obvious)


def test_energy_is_read_where_the_machine_tells_and_counters_wrap(tmp_path, monkeypatch):
    monkeypatch.setattr(power, "METERS", tmp_path)
    assert power.meters() is None and power.joules(None, None) is None
    for name, count in (("intel-rapl:0", 990), ("intel-rapl:1", 5), ("intel-rapl:0:0", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{count}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("999")
    before = power.meters()
    assert len(before) == 2  # parts of a package are counted in it
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("10")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("105")
    assert power.joules(before, power.meters()) == pytest.approx(120e-6)
    monkeypatch.setattr(power, "GOVERNOR", tmp_path / "none")
    assert power.governor() is None
