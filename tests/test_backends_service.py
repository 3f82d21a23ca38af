"""Real kernels as a service meets them: what it asks of an encoder, and what goes wrong around one."""

import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from support.small import write_model, write_reranker

import kerf
from kerf import backends, evaluate, pipeline
from kerf.backends import serve, step, tokens
from kerf.config import STEPS, Calibration, Evaluation, parse
from kerf.core.errors import InputError
from kerf.models import manifest, registry

SPEC = Calibration(samples=16, max_length=64)
TEXTS = [
    "A cat sat.",
    "The government announced a new plan to reduce emissions by 2030.",
    "",
    "x " * 600,
]
ON = {
    "openvino": {"method": "weight_only"},
    "onnxruntime": {"method": "dynamic", "backend": "onnxruntime"},
    "torch": {"method": "dynamic"},
}
each = pytest.mark.parametrize("backend", ON)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model") / "m"))


def candidate(model, backend):
    return pipeline.build(model, [{"quantize": ON[backend]}], SPEC)


def cosines(left, right) -> np.ndarray:
    left, right = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (left, right))
    return (left * right).sum(1)


@each
def test_an_encoder_answers_as_a_service_asks(model, backend):
    opened, base = kerf.load(candidate(model, backend)), registry.open_model(model)
    many = [
        f"{word} {'and more ' * count}"
        for count, word in enumerate(("first", "second", "third", "fourth", "fifth"))
    ] + TEXTS
    rows = opened.encode(many, batch_size=3, show_progress_bar=False, convert_to_numpy=True)
    assert (
        rows.shape == (9, 64)
        and rows.dtype == np.float32
        and cosines(rows, base.encode(many)).min() > 0.999
    )
    assert (
        opened.max_seq_length == base.max_seq_length
        and opened.get_sentence_embedding_dimension() == 64
    )
    assert cosines(opened.encode([many[1]]), rows[1:2]) > 0.9999 and opened.encode(
        many[1]
    ).shape == (64,)
    assert opened.encode([]).shape == (0, 64)
    assert np.allclose(
        np.linalg.norm(opened.encode(many, normalize_embeddings=True), axis=1), 1, atol=1e-5
    )
    with pytest.raises(TypeError, match="sentences: texts, not int"):
        opened.encode(["a", 3])
    with pytest.raises(ValueError, match="batch_size = 0: a whole number from 1"):
        opened.encode(["a"], batch_size=0)
    with pytest.raises(ValueError, match="convert_to_numpy = False: true"):
        opened.encode(["a"], convert_to_numpy=False)
    with pytest.raises(TypeError, match="output_value"):
        opened.encode(["a"], output_value="token_embeddings")
    with pytest.raises(ValueError, match="prompt_name = 'other': one of query, document"):
        opened.encode(["a"], prompt_name="other")


@each
def test_ten_thousand_texts_and_two_threads_at_once(model, backend):
    opened = kerf.load(candidate(model, backend))
    texts = [f"Sentence number {number}." for number in range(10_000)]
    alone, found = opened.encode(texts[:2000]), {}
    workers = [
        threading.Thread(
            target=lambda n=n: found.update({n: opened.encode(texts if n else texts[:2000])})
        )
        for n in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found[1].shape == (10_000, 64) and np.isfinite(found[1]).all()
    assert np.allclose(found[0], alone, atol=1e-5)


@pytest.mark.parametrize(("lengths", "width"), [([1], 8), ([8, 3], 8), ([9], 16)])
def test_batches_are_padded_to_even_lengths(lengths, width):
    inputs = tokens.batch([list(range(5, 5 + length)) for length in lengths])
    ids, mask, _ = inputs.values()
    assert ids.shape == mask.shape == (len(lengths), width) and mask.sum(1).tolist() == lengths
    assert all(
        row[:length].tolist() == list(range(5, 5 + length)) and not row[length:].any()
        for row, length in zip(ids, lengths, strict=True)
    )


@each
def test_a_service_gets_no_torch_that_it_does_not_need_and_no_word(model, backend):
    folder = candidate(model, backend)
    code = (
        f"import sys, kerf; assert kerf.load({str(folder)!r}).encode(['a b', 'c']).shape == (2, 64); "
        "print(sorted({'torch', 'transformers', 'sentence_transformers', 'scipy', 'pandas'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip() == "[]") == (backend != "torch") and done.stderr == ""


@pytest.mark.parametrize(
    ("backend", "weights"),
    [
        ("openvino", "openvino_model.bin"),
        ("onnxruntime", "model.onnx"),
        ("torch", "layers.safetensors"),
    ],
)
def test_a_damaged_model_is_refused_by_its_file(model, tmp_path, backend, weights):
    folder = tmp_path / "candidate"
    shutil.copytree(candidate(model, backend), folder)
    (folder / weights).write_bytes((folder / weights).read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{weights}: is truncated or edited"):
        kerf.load(folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / backends.backend(backend).MODEL).write_text("<net/>")
    manifest.write_manifest(
        folder,
        {key: value for key, value in card.items() if key not in ("files", "sha256", "schema")},
    )  # vouched for, and still no model
    with pytest.raises(
        InputError, match=f"backend = '{backend}': a model that it (compiles|loads)"
    ) as refusal:
        kerf.load(folder)
    assert "\n" not in str(refusal.value)


@each
def test_a_directory_removed_while_loaded_still_answers(model, tmp_path, backend):
    folder = tmp_path / "candidate"
    shutil.copytree(candidate(model, backend), folder)
    opened = kerf.load(folder)
    before = opened.encode(TEXTS)
    shutil.rmtree(folder)
    assert np.array_equal(opened.encode(TEXTS), before)


def test_a_reranker_that_changes_texts_first_is_refused(tmp_path):
    folder = write_reranker(tmp_path / "reranker")
    path = folder / "config_sentence_transformers.json"
    prompts = {"default_prompt_name": "query", "prompts": {"query": "query: "}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **prompts}))
    asked = parse(STEPS["quantize"], {"method": "weight_only"}, "q")
    with pytest.raises(InputError, match="a reranker without default_prompt_name for a real"):
        step.check(str(folder), asked)


def test_a_comparison_says_how_much_faster(model):
    folder = pipeline.build(model, [{"quantize": {"method": "static"}}], SPEC)
    rows = {
        row["name"]: row
        for row in evaluate.read(
            evaluate.compare(
                model,
                folder,
                Evaluation(
                    texts=["news", "everyday"],
                    sentences=40,
                    retrieval=["news"],
                    queries=40,
                    passages=40,
                    classification=[],
                ),
            )
        )[0]
    }
    assert rows["speedup"]["low"] <= rows["speedup"]["value"] <= rows["speedup"]["high"]
    assert rows["cosine_mean"]["value"] > 0.9


@pytest.mark.parametrize(
    ("lengths", "batch_size", "sizes"),
    [
        ([64] * 40, 32, [32, 8]),
        ([65, *[20] * 40], 32, [16, 25]),
        ([512] * 5, 32, [4, 1]),
        ([serve.MAX_TOKENS * 2] * 2, 32, [1, 1]),
        ([300] * 7, 7, [4, 3]),
        ([], 4, []),
    ],
)
def test_long_texts_run_in_smaller_pieces(lengths, batch_size, sizes):
    pieces = list(
        serve._pieces(list(range(len(lengths))), [[0] * length for length in lengths], batch_size)
    )
    assert [len(piece) for piece in pieces] == sizes and [
        place for piece in pieces for place in piece
    ] == list(range(len(lengths)))
    assert all(
        len(piece) == 1 or len(piece) * lengths[piece[0]] <= serve.MAX_TOKENS for piece in pieces
    )


EXPERIMENT = """
model: {model}
calibration: {{samples: 16, max_length: 64}}
evaluation: {{texts: [news, everyday], sentences: 40, retrieval: [news], queries: 20, passages: 20, classification: []}}
resources: {{rounds: 1}}
candidates:
  crashing: [{{quantize: {{method: static}}}}]
  whole: [{{quantize: {{method: dynamic}}}}]
release: [whole]
criteria: [{criteria}]
"""


def test_a_library_that_crashes_takes_its_own_candidate_with_it_alone(model, tmp_path):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    gates = [{"metric": "cosine_mean", "op": ">=", "threshold": 0.5}]
    (tmp_path / "mine.json").write_text(json.dumps({"schema": 1, "gates": gates}))
    (tmp_path / "mine.yaml").write_text(
        EXPERIMENT.format(model=model, criteria=tmp_path / "mine.json")
    )
    command = [
        sys.executable,
        "-m",
        "kerf",
        "run",
        str(tmp_path / "mine.yaml"),
        "--out",
        str(tmp_path / "out"),
        "--fresh",
    ]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    content = json.loads((tmp_path / "out/reports/mine/results.json").read_text())
    _, crashing, whole = content["candidates"]
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert (
        crashing["status"] == "failed"
        and "died" in crashing["error"]["message"]
        and crashing["error"]["notebook"] == "kernels.ipynb"
    )
    assert whole["status"] == "ok" and (whole["kernel"], whole["backend"]) == ("real", "torch")
    assert {"cosine_mean", "speedup", "load_seconds"} <= {
        metric["name"] for metric in whole["metrics"]
    }
    taken = content["resources"]  # of those that were made
    assert {row["model"] for row in taken["rows"]} == {
        "baseline",
        "baseline again",
        "whole",
    } and taken["vectors"]
    assert (
        taken["recommended"] is None
        and taken["noisy"]
        and taken["run"] == content["manifest"]["run"]
    )  # one round tells no difference
    page = (tmp_path / "out/reports/mine/index.html").read_text()
    assert (
        "no candidate that met its thresholds answers sooner" in page
        and "What a service would feel" in page
    )
    assert (tmp_path / "out/reports/mine/baseline/resources.html").is_file()
