"""Real kernels: what calibration chooses, that each library computes exactly that, and what is refused before it starts."""

import copy
import tomllib

import numpy as np
import onnxruntime as ort
import pytest
import torch
from support.small import with_biases, write_causal, write_model

import kerf
from kerf import backends, pipeline
from kerf.backends import int8, onnxruntime_, openvino_
from kerf.backends import step as backend_stage
from kerf.backends import torch_ as own
from kerf.config import STEPS, Calibration, parse
from kerf.core import cache
from kerf.core.cache import meta
from kerf.core.errors import InputError
from kerf.core.paths import root
from kerf.data import corpora
from kerf.models import architecture, manifest, registry

SPEC = Calibration(samples=16, max_length=64)
TEXTS = [
    "A cat sat.",
    "The government announced a new plan to reduce emissions by 2030.",
    "",
    "x " * 600,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(with_biases(write_model(tmp_path_factory.mktemp("model") / "m")))


def cosines(left, right) -> np.ndarray:
    left, right = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (left, right))
    return (left * right).sum(1)


def problem(tokens=800, columns=32, rows=16, seed=0):
    """A weight, and inputs of which two columns are a hundred times as wide as the others and stand off zero."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, columns, generator=generator)
    X[:, 3], X[:, 9] = 100 * X[:, 3] + 40, 60 * X[:, 9].abs()
    return torch.randn(rows, columns, generator=generator), X


def linear(weight, bias=None) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


def test_inputs_are_rounded_to_bytes_of_their_own_columns():
    _, X = problem()
    low, delta = X.amin(0), (X.amax(0) - X.amin(0)) / 255
    found = int8.rounded(X, low, delta)
    units = ((found - low) / delta).double()
    assert (
        (units - units.round()).abs().max() < 1e-3 and units.min() > -1e-3 and units.max() < 255.001
    )
    assert ((found - X).abs() <= delta / 2 * 1.001).all()
    assert torch.allclose(int8.rounded(X * 0 + 1e9, low, delta), low + 255 * delta)


def test_ranges_of_columns_lose_far_less_than_one_range():
    weight, X = problem()
    made = int8._group([linear(weight)], X, X)[0]
    one = int8.rounded(X, X.min(), (X.max() - X.min()) / 255)
    wanted = X @ weight.T
    alone = float((one @ weight.T - wanted).square().sum() / wanted.square().sum())
    assert made.error < 0.2 * alone
    found = int8.rounded(X, made.low, made.delta) @ made.weight().T + made.bias
    assert float((found - wanted).square().sum() / wanted.square().sum()) == pytest.approx(
        made.error, rel=0.05
    )
    assert (found - wanted).mean(0).abs().max() < 1e-3 * wanted.std()


def test_what_a_kernel_multiplies_is_the_same_sum():
    weight, X = problem()
    bias = torch.arange(16.0)
    made = int8._group([linear(weight[:10], bias[:10]), linear(weight[10:], bias[10:])], X, X)
    for part, layer in zip((weight[:10], weight[10:]), made, strict=True):
        u = ((X - layer.low) / layer.delta).round().clamp(0, 255).double()
        kernel = (
            u @ layer.codes.double().T * layer.scale.double()
            + (layer.bias + layer.weight() @ layer.low).double()
        )
        assert torch.allclose(
            kernel.float(),
            int8.rounded(X, layer.low, layer.delta) @ layer.weight().T + layer.bias,
            rtol=1e-3,
            atol=0.05,
        )
        assert layer.codes.dtype == torch.int8 and layer.codes.shape == part.shape
    assert torch.equal(made[0].low, made[1].low) and torch.equal(made[0].delta, made[1].delta)


def test_inputs_of_a_token_are_rounded_between_its_own_bounds():
    _, X = problem()
    X[7] = 3.0  # all the same
    found = int8.rounded(X, None, None)
    delta = (X.amax(1) - X.amin(1)) / 255
    assert ((found - X).abs() <= delta[:, None] / 2 * 1.001 + 1e-6).all()
    assert torch.equal(
        int8.rounded(torch.cat([X[:5], 1e6 * X[5:9]]), None, None)[:5], found[:5]
    )  # whatever stands beside it


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_multiplies_the_same_sum(dynamic):
    weight, X = problem()
    for layer in int8._group([linear(weight, torch.arange(16.0))], X, X, dynamic):
        parts = {
            "codes": layer.codes,
            "scale": layer.scale,
            "bias": layer.bias,
            "low": layer.low,
            "delta": layer.delta,
        }
        wanted = int8.rounded(X, layer.low, layer.delta) @ layer.weight().T + layer.bias
        found = own.Integers(parts)(X.view(20, 40, 32))
        assert torch.allclose(found.view(-1, 16), wanted, rtol=1e-3, atol=0.05) and found.shape == (
            20,
            40,
            16,
        )
        assert (wanted - X @ weight.T - torch.arange(16.0)).mean(
            0
        ).abs().max() < 1e-3 * wanted.std()


def test_a_layer_makes_up_for_what_came_before_it():
    weight, F = problem()
    X = F * 0.9 + 0.05 * torch.randn(F.shape, generator=torch.Generator().manual_seed(1))
    wanted = F @ weight.T

    def lost(originals):
        made = int8._group([linear(weight)], X, originals)[0]
        return float(
            (int8.rounded(X, made.low, made.delta) @ made.weight().T + made.bias - wanted)
            .square()
            .mean()
        )

    assert lost(F) < 0.5 * lost(X)
    made = int8._group([linear(weight)], X + 3, F)[0]  # what came before moved every input
    found = int8.rounded(X + 3, made.low, made.delta) @ made.weight().T + made.bias
    assert (found - wanted).mean(0).abs().max() < 1e-3 * wanted.std()


@pytest.mark.parametrize(
    "step",
    [
        {"method": "static"},
        {"method": "weight_only"},
        {"method": "weight_only", "bits": 4, "group_size": 32},
        {"method": "weight_only", "bits": 4},
        {"method": "static", "backend": "onnxruntime"},
        {"method": "dynamic", "backend": "onnxruntime"},
        {"method": "weight_only", "backend": "onnxruntime", "unquantized_dtype": "float16"},
        {
            "method": "weight_only",
            "bits": 4,
            "group_size": 32,
            "backend": "onnxruntime",
            "embeddings": 4,
        },
        {"method": "static", "backend": "torch"},
        {"method": "dynamic"},
    ],
    ids=str,
)
def test_the_library_computes_what_was_calibrated(model, step, monkeypatch):
    kept = {}
    whole = backend_stage._quantized

    def cut(context, opened):
        found = whole(context, opened)
        kept["cut"] = (
            copy.deepcopy(opened),
            *found,
        )  # torch's own kernels are put into the model itself
        return found

    monkeypatch.setattr(backend_stage, "_quantized", cut)
    monkeypatch.setenv("KERF_FRESH", "9999")
    folder = pipeline.build(model, [{"quantize": step}], SPEC)
    opened, integers, packed = kept["cut"]
    layers = architecture.linears(registry.network(opened))
    for name, value in packed.items():
        registry.network(opened).get_submodule(name).weight.data = value.dequantize()
    with int8.emulated(layers, integers):
        wanted = opened.encode(TEXTS)
    assert cosines(kerf.load(folder).encode(TEXTS), wanted).min() > 0.9995
    made = meta(folder)["result"]
    assert made["backend"] == parse(STEPS["quantize"], step, "s").backend and {
        row["bits"] for row in made["layers"]
    } == {parse(STEPS["quantize"], step, "s").bits}
    assert (
        made["bytes_on_disk"]
        == manifest.size(folder)["bytes_on_disk"]
        < 0.35 * registry.describe(model)["bytes"]
    )


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_half_of_the_bits_everywhere(model, backend):
    folder = pipeline.build(model, [{"quantize": {"method": "bfloat16", "backend": backend}}], SPEC)
    assert (
        cosines(kerf.load(folder).encode(TEXTS), registry.open_model(model).encode(TEXTS)).min()
        > 0.999
    )
    assert meta(folder)["result"]["bytes_on_disk"] < 0.52 * registry.describe(model)["bytes"]


def test_layers_stay_in_float_until_the_floor_is_kept(model):
    every, some = (
        meta(pipeline.build(model, [{"quantize": {"method": "static", **more}}], SPEC))["result"]
        for more in ({}, {"min_cosine": 0.9999})
    )
    assert all(row["bits"] == 8 for row in every["layers"])
    assert 0 < sum(row["bits"] == 32 for row in some["layers"]) < len(some["layers"])
    assert some["linear_bits"] > every["linear_bits"]


def test_as_few_layers_as_it_takes(monkeypatch):
    names = ["a", "b", "c", "d"]
    worth = {"a": 0.01, "b": 0.04, "c": 0.02, "d": 0.005}
    monkeypatch.setattr(backend_stage.registry, "network", lambda opened: opened)
    monkeypatch.setattr(backend_stage.architecture, "linears", lambda net: {})
    here = {}
    monkeypatch.setattr(backend_stage, "embed", lambda opened, batches: None)
    monkeypatch.setattr(
        backend_stage.int8,
        "emulated",
        lambda layers, found: here.update(found=found) or _Nothing(),
    )
    monkeypatch.setattr(
        backend_stage,
        "mean_cosine",
        lambda found, aim: 1 - sum(worth[name] for name in here["found"]),
    )
    left = lambda floor: [  # noqa: E731
        name
        for name in names
        if name not in backend_stage.keep_in_float(None, None, dict.fromkeys(names), floor, [])
    ]
    assert (
        left(0.9) == []
        and left(0.95) == ["b"]
        and left(0.98) == ["b", "c"]
        and left(0.9999) == names
    )


class _Nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "static", "bits": 4}, "q.bits = 4: 8 with method static"),
        ({"method": "weight_only", "bits": 3}, "q.bits = 3: 4 or 8 with method weight_only"),
        ({"method": "bfloat16", "bits": 8}, "q.bits = 8: 16 with method bfloat16"),
        ({"method": "rtn", "bits": 16}, "q.bits = 16: a whole number from 2 to 8"),
        ({"method": "rtn", "embeddings": 16}, "q.embeddings = 16: 2 to 8, 32"),
        (
            {"method": "rtn", "backend": "openvino"},
            "q.backend = 'openvino': no key of method rtn; static, dynamic, weight_only and bfloat16 have it",
        ),
        (
            {"method": "static", "backend": "tvm"},
            "q.backend = 'tvm': openvino, onnxruntime or torch with method static",
        ),
        (
            {"method": "dynamic", "backend": "openvino"},
            "q.backend = 'openvino': onnxruntime or torch with method dynamic",
        ),
        (
            {"method": "weight_only", "backend": "torch"},
            "q.backend = 'torch': openvino or onnxruntime with method weight_only",
        ),
        (
            {"method": "bfloat16", "backend": "onnxruntime"},
            "q.backend = 'onnxruntime': openvino or torch with method bfloat16",
        ),
        ({"method": "dynamic", "bits": 4}, "q.bits = 4: 8 with method dynamic"),
        (
            {"method": "dynamic", "group_size": 32},
            "q.group_size = 32: no key of method dynamic; rtn, gptq, ",
        ),
        (
            {"method": "dynamic", "symmetric": False},
            "q.symmetric = False: no key of method dynamic; rtn, ",
        ),
        (
            {"method": "dynamic", "compute_dtype": "bfloat16"},
            "q.compute_dtype = 'bfloat16': no key of method dynamic",
        ),
        (
            {"method": "weight_only", "group_size": 24, "backend": "onnxruntime"},
            "q.group_size = 24: a multiple of 16",
        ),
        (
            {"method": "static", "compute_dtype": "bfloat16", "backend": "torch"},
            "q.compute_dtype = 'bfloat16': float32, or bfloat16 with",
        ),
        (
            {"method": "weight_only", "granularity": "tensor"},
            "q.granularity = 'tensor': channel or group",
        ),
        (
            {"method": "weight_only", "min_cosine": 0.9},
            "q.min_cosine = 0.9: no key of method weight_only",
        ),
        (
            {"method": "static", "budget_bytes": 9},
            "q.budget_bytes = 9: no key of method static; rtn and gptq have it",
        ),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(values, message):
    with pytest.raises(InputError) as refusal:
        parse(STEPS["quantize"], values, "q")
    assert str(refusal.value).startswith(message)


def test_another_kind_of_model_a_missing_library_and_steps_behind_are_refused(
    model, tmp_path, monkeypatch
):
    with pytest.raises(
        InputError,
        match="an encoder or a reranker; method: static does not know causal language models yet",
    ):
        pipeline.build(
            str(write_causal(tmp_path / "causal")), [{"quantize": {"method": "static"}}], SPEC
        )
    with pytest.raises(InputError, match="steps.1.method = 'static': the last step"):
        pipeline.build(model, [{"quantize": {"method": "static"}}, {"prune": {}}], SPEC)


@pytest.mark.parametrize("library", [openvino_, onnxruntime_], ids=["openvino", "onnxruntime"])
def test_a_library_that_is_missing_is_offered_with_the_line_that_installs_it(
    model, library, monkeypatch
):
    name = library.__name__.rpartition(".")[2].rstrip("_")
    folder = pipeline.build(model, [{"quantize": {"method": "static", "backend": name}}], SPEC)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for work in (
        lambda: kerf.load(folder),
        lambda: pipeline.build(
            model, [{"quantize": {"method": "weight_only", "backend": name}}], SPEC
        ),
    ):
        with pytest.raises(InputError) as refusal:
            work()
        assert (
            str(refusal.value)
            == f"backend = '{name}': a library that is installed: `{library.INSTALL}`"
        )


@pytest.mark.parametrize("library", [openvino_, onnxruntime_], ids=["openvino", "onnxruntime"])
def test_a_model_whose_operators_are_unknown_is_refused(model, library):
    class Odd(torch.nn.Module):
        def forward(self, features):
            return {
                **features,
                "sentence_embedding": torch.linalg.eigvals(
                    features["token_embeddings"][:, :2, :2]
                ).abs(),
            }

    opened = registry.open_model(model)
    opened[1] = Odd()
    with pytest.raises(
        InputError, match="a model whose operators and shapes it takes .*linalg"
    ) as refusal:
        library.convert(opened)
    assert "\n" not in str(refusal.value)


class ByLength(torch.nn.Module):
    def forward(self, features):
        first = features["token_embeddings"][:, 0]
        return {
            **features,
            "sentence_embedding": torch.where(
                torch.arange(64) < int(features["token_embeddings"].shape[1]), first, -first
            ),
        }


class ByContent(torch.nn.Module):
    def forward(self, features):
        first = features["token_embeddings"][:, 0]
        return {**features, "sentence_embedding": first if float(first.sum()) > 0 else -first}


@pytest.mark.parametrize(
    ("library", "odd", "message"),
    [
        (openvino_, ByLength, "a model whose graph does not depend on the number"),
        (onnxruntime_, ByContent, "a model whose operators and shapes it takes"),
    ],
    ids=["openvino", "onnxruntime"],
)
def test_a_model_that_does_not_fit_every_text_is_refused(model, library, odd, message, capfd):
    opened, step = registry.open_model(model), parse(STEPS["quantize"], {"method": "static"}, "q")
    backend_stage.check_shapes(library, library.convert(opened), opened, step)
    opened[1] = odd()
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as refusal:
        backend_stage.check_shapes(library, library.convert(opened), opened, step)
    assert "\n" not in str(refusal.value) and capfd.readouterr().err.count("\n") < 3


def test_another_graph_than_the_model_is_refused_before_the_cut(model, tmp_path, monkeypatch):
    other, convert = write_model(tmp_path / "other", seed=1), openvino_.convert
    monkeypatch.setattr(
        openvino_, "convert", lambda opened: convert(registry.open_model(str(other)))
    )
    monkeypatch.setattr(int8, "integers", lambda *_: pytest.fail("heavy work began"))
    with pytest.raises(InputError, match="a model whose graph does not depend on the number"):
        pipeline.build(model, [{"quantize": {"method": "static", "embeddings": 4}}], SPEC)


def test_no_processor_adds_bytes_up_wrongly(model, monkeypatch):
    taken, found = {}, []
    folder = pipeline.build(
        model, [{"quantize": {"method": "dynamic", "backend": "onnxruntime"}}], SPEC
    )
    whole = ort.InferenceSession
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda path, options, **more: taken.update(options=options) or whole(path, options, **more),
    )
    for flags, told in (
        (["avx2", "avx512f"], "1"),
        (["avx512_vnni"], "0"),
        (["avx_vnni"], "0"),
        (["amx_int8"], "0"),
    ):
        monkeypatch.setattr(cache, "machine", lambda flags=flags: {"flags": flags})
        found.append(kerf.load(folder).encode(TEXTS))
        assert taken["options"].get_session_config_entry("session.x64quantprecision") == told
    monkeypatch.undo()
    if backends.adds_bytes_exactly():
        assert np.allclose(found[0], found[1], atol=1e-5)
    folder = pipeline.build(model, [{"quantize": {"method": "dynamic"}}], SPEC)
    exact = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: exact(a, b).clamp(-(2**15), 2**15 - 1))
    with pytest.raises(InputError, match="backend = 'torch': a processor with whole sums of bytes"):
        kerf.load(folder)


def test_where_sums_of_bytes_saturate_codes_have_seven_bits(monkeypatch, tmp_path):
    weight, X = problem()
    made = int8._group([linear(weight)], X, X, bits=7)[0]
    assert (
        60 < made.codes.short().abs().max() <= 64
        and made.error < 9 * int8._group([linear(weight)], X, X)[0].error
    )
    monkeypatch.setattr(openvino_, "adds_bytes_exactly", lambda: False)
    with pytest.raises(InputError, match="a processor with VNNI"):
        openvino_.run(tmp_path, {"settings": {}, "code_bits": 8}, 1)


def test_without_units_for_bfloat16_it_is_not_emulated(model, monkeypatch):
    half, whole = (
        pipeline.build(model, [{"quantize": step}], SPEC)
        for step in ({"method": "static", "compute_dtype": "bfloat16"}, {"method": "static"})
    )
    expected = kerf.load(whole).encode(TEXTS)
    for flags in (["avx512_vnni"], ["avx512_vnni", "avx512_bf16"]):
        monkeypatch.setattr(cache, "machine", lambda flags=flags: {"flags": flags})
        same = np.array_equal(kerf.load(half).encode(TEXTS), expected)
        assert (
            same
            if len(flags) == 1
            else not same or not any("bf16" in flag for flag in cache.machine()["flags"])
        )


def test_what_installs_a_library_is_what_is_pinned():
    for library in (openvino_, own):
        assert f"- {library.INSTALL.split()[-1]}\n" in (root() / "environment.yml").read_text()
    extra = tomllib.loads((root() / "lib" / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["onnxruntime"]
    assert {*onnxruntime_.INSTALL.split()[2:]} <= {*extra}


def test_a_floor_without_text_to_hold_back_is_refused_before_the_cut(model, tmp_path, monkeypatch):
    lines = corpora.documents("news", "calibration")[:20]
    everything = sorted({sentence for line in lines for sentence in corpora.sentences(line)})
    (tmp_path / "mine.txt").write_text("\n".join(everything))
    pool = len(
        {
            s
            for each in corpora.documents(str(tmp_path / "mine.txt"), "calibration")
            for s in corpora.sentences(each)
        }
    )
    monkeypatch.setattr(int8, "integers", lambda *_: pytest.fail("heavy work began"))
    spec = Calibration(texts=str(tmp_path / "mine.txt"), samples=pool, max_length=64)
    with pytest.raises(InputError, match="calibration.samples = .*: at most .*held back"):
        pipeline.build(model, [{"quantize": {"method": "static", "min_cosine": 0.9}}], spec)
