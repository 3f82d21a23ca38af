"""Real kernels: what calibration chooses, that the library computes exactly that, and the encoder that a service gets."""

import json
import subprocess
import sys
import threading

import kerf
import numpy as np
import pytest
import torch
from kerf import anatomy, evaluate, models, pipeline, seal, texts
from kerf.artifacts import machine, meta
from kerf.backends import openvino, serve, stage, static
from kerf.errors import Refused
from kerf.places import root
from kerf.steps import Calibration, Evaluation, Quantize, parse
from small import write_causal, write_model

SPEC = Calibration(samples=16, max_length=64)
TEXTS = ["A cat sat.", "The government announced a new plan to reduce emissions by 2030.", "", "x " * 600]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model") / "m"))


def cosines(left, right) -> np.ndarray:
    left, right = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (left, right))
    return (left * right).sum(1)


def problem(tokens=800, columns=32, rows=16, seed=0):
    """A weight, and inputs of which two columns are a hundred times as wide as the others and stand off zero."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, columns, generator=generator)
    X[:, 3], X[:, 9] = 100 * X[:, 3] + 40, 60 * X[:, 9].abs()
    return torch.randn(rows, columns, generator=generator), X


def test_inputs_are_rounded_to_bytes_of_their_own_columns():
    _, X = problem()
    low, delta = X.amin(0), (X.amax(0) - X.amin(0)) / 255
    found = static.rounded(X, low, delta)
    units = ((found - low) / delta).double()
    assert (units - units.round()).abs().max() < 1e-3 and units.min() > -1e-3 and units.max() < 255.001
    assert ((found - X).abs() <= delta / 2 * 1.001).all()
    assert torch.allclose(static.rounded(X * 0 + 1e9, low, delta), low + 255 * delta)


def test_ranges_of_columns_lose_far_less_than_one_range():
    weight, X = problem()
    made = static._group([weight], [None], X, X)[0]
    one = static.rounded(X, X.min(), (X.max() - X.min()) / 255)
    wanted = X @ weight.T
    alone = float((one @ weight.T - wanted).square().sum() / wanted.square().sum())
    assert made.error < 0.2 * alone
    found = static.rounded(X, made.low, made.delta) @ made.weight().T + made.bias
    assert float((found - wanted).square().sum() / wanted.square().sum()) == pytest.approx(made.error, rel=0.05)
    assert (found - wanted).mean(0).abs().max() < 1e-3 * wanted.std()


def test_what_a_kernel_multiplies_is_the_same_sum():
    weight, X = problem()
    bias = torch.arange(16.0)
    made = static._group([weight[:10], weight[10:]], [bias[:10], bias[10:]], X, X)
    for part, layer in zip((weight[:10], weight[10:]), made, strict=True):
        u = ((X - layer.low) / layer.delta).round().clamp(0, 255).double()
        kernel = u @ layer.codes.double().T * layer.scale.double() + (layer.bias + layer.weight() @ layer.low).double()
        assert torch.allclose(kernel.float(), static.rounded(X, layer.low, layer.delta) @ layer.weight().T + layer.bias, rtol=1e-3, atol=0.05)
        assert layer.codes.dtype == torch.int8 and layer.codes.shape == part.shape
    assert torch.equal(made[0].low, made[1].low) and torch.equal(made[0].delta, made[1].delta)


def test_a_layer_makes_up_for_what_came_before_it():
    weight, F = problem()
    X = F * 0.9 + 0.05 * torch.randn(F.shape, generator=torch.Generator().manual_seed(1))
    wanted = F @ weight.T

    def lost(originals):
        made = static._group([weight], [None], X, originals)[0]
        return float((static.rounded(X, made.low, made.delta) @ made.weight().T + made.bias - wanted).square().mean())

    assert lost(F) < 0.5 * lost(X)
    made = static._group([weight], [None], X + 3, F)[0]  # what came before moved every input
    found = static.rounded(X + 3, made.low, made.delta) @ made.weight().T + made.bias
    assert (found - wanted).mean(0).abs().max() < 1e-3 * wanted.std()


@pytest.mark.parametrize("step", [
    {"method": "static"}, {"method": "weights"}, {"method": "weights", "bits": 4, "group_size": 32}, {"method": "weights", "bits": 4},
], ids=str)  # fmt: skip
def test_the_library_computes_what_was_calibrated(model, step, monkeypatch):
    kept = {}
    whole = stage._cut
    monkeypatch.setattr(stage, "_cut", lambda step, opened, *rest: kept.setdefault("cut", (opened, *whole(step, opened, *rest)))[1:])
    monkeypatch.setenv("KERF_FRESH", "9999")
    folder = pipeline.build(model, [{"quantize": step}], SPEC)
    opened, integers, packed = kept["cut"]
    layers = anatomy.linears(models.network(opened))
    for name, value in packed.items():
        models.network(opened).get_submodule(name).weight.data = value.dequantize()
    with static.computing(layers, integers):
        wanted = opened.encode(TEXTS)
    assert cosines(kerf.load(folder).encode(TEXTS), wanted).min() > 0.9995
    made = meta(folder)["result"]
    assert made["backend"] == "openvino" and {row["bits"] for row in made["layers"]} == {parse(Quantize, step, "s").bits}
    assert made["bytes_on_disk"] == seal.size(folder)["bytes_on_disk"] < 0.35 * models.describe(model)["bytes"]


def test_half_of_the_bits_everywhere(model):
    folder = pipeline.build(model, [{"quantize": {"method": "bfloat16"}}], SPEC)
    assert cosines(kerf.load(folder).encode(TEXTS), models.open_model(model).encode(TEXTS)).min() > 0.999
    assert meta(folder)["result"]["bytes_on_disk"] < 0.52 * models.describe(model)["bytes"]


def test_layers_stay_in_float_until_the_floor_is_kept(model):
    every, some = (meta(pipeline.build(model, [{"quantize": {"method": "static", **more}}], SPEC))["result"] for more in ({}, {"floor": 0.9999}))
    assert all(row["bits"] == 8 for row in every["layers"])
    assert 0 < sum(row["bits"] == 32 for row in some["layers"]) < len(some["layers"])
    assert some["linear_bits"] > every["linear_bits"]


def test_as_few_layers_as_it_takes(monkeypatch):
    names = ["a", "b", "c", "d"]
    worth = {"a": 0.01, "b": 0.04, "c": 0.02, "d": 0.005}
    monkeypatch.setattr(stage.models, "network", lambda opened: opened)
    monkeypatch.setattr(stage.anatomy, "linears", lambda net: {})
    here = {}
    monkeypatch.setattr(stage, "embed", lambda opened, batches: None)
    monkeypatch.setattr(stage.static, "computing", lambda layers, found: here.update(found=found) or _Nothing())
    monkeypatch.setattr(stage, "fidelity", lambda found, aim: 1 - sum(worth[name] for name in here["found"]))
    left = lambda floor: [name for name in names if name not in stage.spared(None, None, dict.fromkeys(names), floor, [])]  # noqa: E731
    assert left(0.9) == [] and left(0.95) == ["b"] and left(0.98) == ["b", "c"] and left(0.9999) == names


class _Nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return False


def test_an_encoder_answers_as_a_service_asks(model):
    opened, base = kerf.load(pipeline.build(model, [{"quantize": {"method": "weights"}}], SPEC)), models.open_model(model)
    many = [f"{word} {'and more ' * count}" for count, word in enumerate(("first", "second", "third", "fourth", "fifth"))] + TEXTS
    rows = opened.encode(many, batch_size=3, show_progress_bar=False, convert_to_numpy=True)
    assert rows.shape == (9, 64) and rows.dtype == np.float32 and cosines(rows, base.encode(many)).min() > 0.999
    assert opened.max_seq_length == base.max_seq_length and opened.get_sentence_embedding_dimension() == 64
    assert np.allclose(opened.encode(many[1]), rows[1], atol=1e-4) and opened.encode(many[1]).shape == (64,)
    assert opened.encode([]).shape == (0, 64)
    assert np.allclose(np.linalg.norm(opened.encode(many, normalize_embeddings=True), axis=1), 1, atol=1e-5)
    with pytest.raises(TypeError, match="sentences: texts, not int"):
        opened.encode(["a", 3])
    with pytest.raises(ValueError, match="batch_size = 0: a whole number from 1"):
        opened.encode(["a"], batch_size=0)
    with pytest.raises(ValueError, match="convert_to_numpy = False: true"):
        opened.encode(["a"], convert_to_numpy=False)
    with pytest.raises(TypeError, match="prompt_name"):
        opened.encode(["a"], prompt_name="query")


def test_ten_thousand_texts_and_two_threads_at_once(model):
    opened = kerf.load(pipeline.build(model, [{"quantize": {"method": "static"}}], SPEC))
    texts = [f"Sentence number {number}." for number in range(10_000)]
    alone, found = opened.encode(texts[:2000]), {}
    workers = [threading.Thread(target=lambda n=n: found.update({n: opened.encode(texts if n else texts[:2000])})) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found[1].shape == (10_000, 64) and np.isfinite(found[1]).all()
    assert np.allclose(found[0], alone, atol=1e-5)


@pytest.mark.parametrize(("lengths", "width"), [([1], 8), ([8, 3], 8), ([9], 16)])
def test_batches_are_padded_to_even_lengths(lengths, width):
    ids, mask = serve.padded([list(range(5, 5 + length)) for length in lengths])
    assert ids.shape == mask.shape == (len(lengths), width) and mask.sum(1).tolist() == lengths
    assert all(row[:length].tolist() == list(range(5, 5 + length)) and not row[length:].any() for row, length in zip(ids, lengths, strict=True))


def test_torch_is_not_needed(model):
    folder = pipeline.build(model, [{"quantize": {"method": "static"}}], SPEC)
    code = f"import sys, kerf; assert kerf.load({str(folder)!r}).encode(['a b', 'c']).shape == (2, 64); " \
           "print(sorted({'torch', 'transformers', 'sentence_transformers', 'scipy', 'pandas'} & {*sys.modules}))"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_comparison_says_how_much_faster(model):
    folder = pipeline.build(model, [{"quantize": {"method": "static"}}], SPEC)
    rows = {row["name"]: row for row in evaluate.read(evaluate.compare(model, folder, Evaluation(sentences=40, passages=40)))[0]}
    assert rows["speedup"]["low"] <= rows["speedup"]["value"] <= rows["speedup"]["high"]
    assert rows["cosine_mean"]["value"] > 0.9


@pytest.mark.parametrize(("values", "message"), [
    ({"method": "static", "bits": 4}, "q.bits = 4: 8 with method static"),
    ({"method": "weights", "bits": 3}, "q.bits = 3: 4 or 8 with method weights"),
    ({"method": "bfloat16", "bits": 8}, "q.bits = 8: 16 with method bfloat16"),
    ({"method": "rtn", "bits": 16}, "q.bits = 16: a whole number from 2 to 8"),
    ({"method": "rtn", "embeddings": 16}, "q.embeddings = 16: 2 to 8, 32"),
    ({"method": "rtn", "backend": "openvino"}, "q.backend = 'openvino': a library with method static, weights"),
    ({"method": "static", "backend": "tvm"}, "q.backend = 'tvm': openvino"),
    ({"method": "gptq", "compute": "bfloat16"}, "q.compute = 'bfloat16': float32, or bfloat16 with"),
    ({"method": "static", "granularity": "tensor"}, "q.granularity = 'tensor': channel or group"),
    ({"method": "weights", "floor": 0.9}, "q.bits = 8: mixed together with either budget_bytes or floor"),
    ({"method": "static", "budget_bytes": 9}, "q.bits = 8: mixed together with"),
])  # fmt: skip
def test_what_a_kernel_cannot_do_is_refused(values, message):
    with pytest.raises(Refused) as refusal:
        parse(Quantize, values, "q")
    assert str(refusal.value).startswith(message)


def test_another_kind_of_model_a_missing_library_and_steps_behind_are_refused(model, tmp_path, monkeypatch):
    with pytest.raises(Refused, match="an encoder or a reranker; method: static does not know causal language models yet"):
        pipeline.build(str(write_causal(tmp_path / "causal")), [{"quantize": {"method": "static"}}], SPEC)
    with pytest.raises(Refused, match="steps.1.method = 'static': the last step"):
        pipeline.build(model, [{"quantize": {"method": "static"}}, {"prune": {}}], SPEC)
    folder = pipeline.build(model, [{"quantize": {"method": "static"}}], SPEC)
    monkeypatch.setattr(openvino, "available", lambda: False)
    for work in (lambda: kerf.load(folder), lambda: pipeline.build(model, [{"quantize": {"method": "bfloat16"}}], SPEC)):
        with pytest.raises(Refused, match="backend = 'openvino': a library that is installed: `pip install openvino==2026.4.1`"):
            work()


def test_a_damaged_model_is_refused_by_its_file(model, tmp_path):
    import shutil

    folder = tmp_path / "candidate"
    shutil.copytree(pipeline.build(model, [{"quantize": {"method": "static"}}], SPEC), folder)
    weights = folder / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Refused, match="openvino_model.bin: is missing, truncated or edited"):
        kerf.load(folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / openvino.MODEL).write_text("<net/>")
    seal.seal(folder, {key: value for key, value in card.items() if key not in ("files", "sha256", "schema")})  # vouched for, and still no model
    with pytest.raises(Refused, match="backend = 'openvino': a model that it compiles"):
        kerf.load(folder)


def test_a_directory_removed_while_loaded_still_answers(model, tmp_path):
    import shutil

    folder = tmp_path / "candidate"
    shutil.copytree(pipeline.build(model, [{"quantize": {"method": "static"}}], SPEC), folder)
    opened = kerf.load(folder)
    before = opened.encode(TEXTS)
    shutil.rmtree(folder)
    assert np.array_equal(opened.encode(TEXTS), before)


def test_a_model_whose_operators_are_unknown_is_refused(model):
    class Odd(torch.nn.Module):
        def forward(self, features):
            return {**features, "sentence_embedding": torch.linalg.eigvals(features["token_embeddings"][:, :2, :2]).abs()}

    opened = models.open_model(model)
    opened[1] = Odd()
    with pytest.raises(Refused, match="backend = 'openvino': a model whose operators it has"):
        openvino.convert(opened)


def test_a_model_that_changes_texts_first_is_refused(tmp_path):
    for name, key, value in (("config_sentence_transformers.json", "default_prompt_name", "query"), ("sentence_bert_config.json", "do_lower_case", True)):
        folder = write_model(tmp_path / key)
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, key: value, "prompts": {"query": "query: "}} if "prompt" in key else {**config, key: value}))
        with pytest.raises(Refused, match=f"a model without {key} for a real kernel; {name} says {value!r}"):
            stage.check(str(folder), parse(Quantize, {"method": "weights"}, "q"))


def test_without_units_for_bfloat16_it_is_not_emulated(model, monkeypatch):
    half, whole = (pipeline.build(model, [{"quantize": step}], SPEC) for step in ({"method": "static", "compute": "bfloat16"}, {"method": "static"}))
    expected = kerf.load(whole).encode(TEXTS)
    for flags in (["avx512_vnni"], ["avx512_vnni", "avx512_bf16"]):
        monkeypatch.setattr(openvino, "machine", lambda flags=flags: {"flags": flags})
        same = np.array_equal(kerf.load(half).encode(TEXTS), expected)
        assert same if len(flags) == 1 else not same or not any("bf16" in flag for flag in machine()["flags"])


def test_what_installs_the_library_is_what_is_pinned():
    assert f"- {openvino.INSTALL.split()[-1]}\n" in (root() / "environment.yml").read_text()


def test_a_floor_without_text_to_hold_back_is_refused_before_the_cut(model, tmp_path, monkeypatch):
    lines = texts.documents("news", "calibration")[:20]
    everything = sorted({sentence for line in lines for sentence in texts.sentences(line)})
    (tmp_path / "mine.txt").write_text("\n".join(everything))
    pool = len({s for each in texts.documents(str(tmp_path / "mine.txt"), "calibration") for s in texts.sentences(each)})
    monkeypatch.setattr(static, "integers", lambda *_: pytest.fail("heavy work began"))
    spec = Calibration(texts=str(tmp_path / "mine.txt"), samples=pool, max_length=64)
    with pytest.raises(Refused, match="calibration.samples = .*: at most .*held back"):
        pipeline.build(model, [{"quantize": {"method": "static", "floor": 0.9}}], spec)
