"""Pruning: which weights go, how the rest makes up for it, and that what is 0 stays 0 through every step and the store."""

import json
import time

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from support.small import write_causal, write_model, write_reranker

import kerf
from kerf import evaluate, pipeline
from kerf.calibration import activations, hessian
from kerf.calibration.candidate import StepContext
from kerf.calibration.hessian import damped, inverse_factor, moments
from kerf.calibration.layer import Calibrated
from kerf.config import STEPS, Calibration, Evaluation, parse
from kerf.core.cache import meta
from kerf.core.errors import InputError
from kerf.evaluate import encoder as measured_encoder
from kerf.evaluate import latency
from kerf.models import architecture, families, registry
from kerf.prune import allocation, depth, structured
from kerf.prune.layers import prune_at_levels, prune_layers
from kerf.prune.sparsegpt import sparsegpt
from kerf.prune.structured import left, obs_prune
from kerf.quantize.rounding import rtn
from kerf.tensors import masks, parquet
from kerf.tensors.quantized import Quantized

SPEC = Calibration(samples=16, max_length=64)
PRUNE = {"prune": {"method": "sparsegpt", "sparsity": 0.5}}


def problem(rows=24, columns=160, tokens=400, seed=0):
    """A weight and correlated inputs (tokens, columns)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    X = torch.randn(tokens, columns, generator=generator) @ (mixing + 0.3 * torch.eye(columns))
    return torch.randn(rows, columns, generator=generator), X * torch.linspace(0.1, 2, columns)[
        torch.randperm(columns, generator=generator)
    ]


def lost(before, after, X) -> float:
    return float(((after - before) @ X.T).square().sum())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_the_lowest_go_and_as_many_as_were_asked(sparsity):
    scores = torch.rand(8, 40, generator=torch.Generator().manual_seed(0))
    whole, rows = masks.lowest_of_all(scores, sparsity), masks.lowest(scores, sparsity)
    assert (
        int((~whole).sum()) == round(sparsity * 320) and scores[~whole].max() < scores[whole].min()
    )
    assert ((~rows).sum(1) == round(sparsity * 40)).all()
    assert all(row[~kept].max() < row[kept].min() for row, kept in zip(scores, rows, strict=True))


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (4, 8), (1, 5)])
def test_of_neighbours_the_highest_stay(keep, of):
    scores = torch.rand(8, 40, generator=torch.Generator().manual_seed(0))
    kept = masks.lowest_of_neighbours(scores, keep, of).view(8, -1, of)
    assert (kept.sum(-1) == keep).all()
    highest = scores.view(8, -1, of).sort(descending=True).values[..., :keep]
    assert torch.equal(
        torch.where(kept, scores.view(8, -1, of), 0).sort(descending=True).values[..., :keep],
        highest,
    )


def test_wanda_is_its_definition():
    weight, X = problem()
    assert torch.allclose(
        masks.wanda(weight, X.square().sum(0)), weight.abs() * X.norm(dim=0), rtol=1e-4
    )


@pytest.mark.parametrize("pattern", [None, (2, 4), (4, 8)])
def test_sparsegpt_is_the_slow_and_obvious_loop(pattern):
    weight, X = problem(rows=6, columns=32)
    H = X.T @ X
    R, damping = inverse_factor(H)
    found = sparsegpt(weight, H, R, 0.5, pattern)
    W, kept = weight.double().clone(), torch.ones(6, 32, dtype=torch.bool)
    upper = torch.linalg.cholesky(damped(H, damping).double().inverse(), upper=True)
    loss = (W / upper.diagonal()).square()
    if not pattern:
        kept = masks.lowest_of_all(loss, 0.5)
    for i in range(32):
        if pattern and i % pattern[1] == 0:
            here = slice(i, i + pattern[1])
            kept[:, here] = masks.lowest(
                (W[:, here] / upper.diagonal()[here]).square(), 1 - pattern[0] / pattern[1]
            )
        error = torch.where(kept[:, i], 0.0, W[:, i]) / upper[i, i]
        W[:, i:] -= error[:, None] * upper[i, i:]
        W[:, i] *= kept[:, i]
    assert torch.equal(found != 0, kept) and torch.allclose(found.double(), W, atol=1e-3)


def test_each_method_loses_less_than_the_simpler_one():
    weight, X = problem()
    H = X.T @ X
    R, _ = inverse_factor(H)
    by_size = lost(weight, weight * masks.lowest_of_all(weight.abs(), 0.5), X)
    by_input = lost(weight, weight * masks.lowest(masks.wanda(weight, H.diagonal()), 0.5), X)
    updated, settled = (
        lost(weight, sparsegpt(weight, H, R, 0.5, None, sweeps), X) for sweeps in (0, 5)
    )
    assert settled < 0.95 * updated < 0.8 * by_input < 0.7 * by_size


def test_many_sweeps_end_at_the_least_squares_of_what_is_kept():
    weight, X = problem(rows=3, columns=24)
    H = X.T @ X
    found = sparsegpt(weight, H, inverse_factor(H, 1e-6)[0], 0.5, None, sweeps=400)
    loss = damped(H, 0.01)
    root = torch.linalg.cholesky(loss.double()).T.numpy()
    for row, target in zip(found, weight, strict=True):
        columns = np.flatnonzero(row.numpy())
        best = lsq_linear(root[:, columns], root @ target.double().numpy()).x
        assert np.allclose(row.numpy()[columns], best, atol=1e-3)


@pytest.fixture(scope="module", params=["encoder", "causal"])
def model(request, tmp_path_factory):
    write = write_model if request.param == "encoder" else write_causal
    return str(write(tmp_path_factory.mktemp("prune") / request.param))


@pytest.mark.parametrize(
    "step",
    [
        {"method": "magnitude", "sparsity": 0.3},
        {"method": "magnitude", "sparsity": 0.5, "scope": "global"},
        {"method": "wanda", "sparsity": 0.5, "sweeps": 0},
        {"method": "wanda", "pattern": "2:4"},
        {"method": "sparsegpt", "sparsity": 0.5},
        {"method": "sparsegpt", "pattern": "4:8", "asymmetric_calibration": False},
    ],
    ids=["magnitude", "global", "wanda", "wanda 2:4", "sparsegpt", "sparsegpt 4:8"],
)
def test_a_pruned_model_is_as_sparse_as_was_asked_and_loads_as_it_was_stored(model, step):
    made = pipeline.build(model, [{"prune": step}], SPEC)
    result, share = meta(made)["result"], parse(STEPS["prune"], step, "p").sparsity
    assert result["sparsity"] == pytest.approx(share, abs=0.01)
    linears = architecture.linears(registry.network(kerf.load(made)))
    zeros = [int((layer.weight == 0).sum()) for layer in linears.values()]
    assert sum(zeros) / sum(layer.weight.numel() for layer in linears.values()) == pytest.approx(
        share, abs=0.01
    )
    if step["method"] == "magnitude":
        before = architecture.linears(registry.network(registry.open_model(model)))
        assert all(
            torch.equal(layer.weight[layer.weight != 0], before[n].weight[layer.weight != 0])
            for n, layer in linears.items()
        )
    if "pattern" in step:
        keep, of = parse(STEPS["prune"], step, "p").nm_pattern()
        assert all(
            ((layer.weight.reshape(-1, of) != 0).sum(1) <= keep).all() for layer in linears.values()
        )
    stored = parquet.read_weights(made / parquet.WEIGHTS)
    assert all(
        torch.equal(layer.weight, stored[f"{name}.weight"]) for name, layer in linears.items()
    )


def test_bytes_fall_with_sparsity_and_a_pattern_costs_less_than_its_indices(model):
    sizes = [
        meta(pipeline.build(model, [{"prune": {"sparsity": share}}], SPEC))["result"][
            "bytes_on_disk"
        ]
        for share in (0.25, 0.5, 0.75)
    ]
    count = sum(rows * columns for rows, columns in registry.describe(model)["linears"].values())
    for wider, narrower in zip(sizes, sizes[1:], strict=False):
        assert wider - narrower == pytest.approx(
            count, rel=0.25
        )  # a quarter of 4 bytes a weight, a little compressed
    whole = torch.randn(256, 512)
    cut = whole.masked_fill(~masks.lowest_of_neighbours(whole.abs(), 2, 4), 0)
    values = parquet.row_bytes(cut[cut != 0].view(256, 256))
    assert (
        parquet.row_bytes(cut) < values + 0.75 * cut.numel() / 8
    )  # indices: two bits each of half the weights


@pytest.mark.parametrize(
    "quantize",
    [
        {"method": "gptq", "bits": 3, "group_size": 32, "clip": "hessian"},
        {"bits": 4, "group_size": 32},
    ],
    ids=["gptq", "rtn"],
)
def test_what_is_pruned_stays_0_when_it_is_quantized(model, quantize):
    first, both = (
        pipeline.build(model, chain, SPEC) for chain in ([PRUNE], [PRUNE, {"quantize": quantize}])
    )
    before, after = (
        architecture.linears(registry.network(kerf.load(folder))) for folder in (first, both)
    )
    assert all((layer.weight[before[name].weight == 0] == 0).all() for name, layer in after.items())
    alone = pipeline.build(model, [{"quantize": quantize}], SPEC)
    sizes = [meta(folder)["result"]["bytes_on_disk"] for folder in (first, alone, both)]
    assert sizes[2] < sizes[1] < sizes[0]
    made = meta(both)["result"]
    assert (
        made["sparsity"] == pytest.approx(0.5, abs=0.01)
        and made["linear_bits"] < meta(alone)["result"]["linear_bits"]
    )


def test_a_quantized_model_is_pruned_on_its_grid(model):
    cut = {"quantize": {"bits": 4, "group_size": 32}}
    first = pipeline.build(model, [cut], SPEC)
    both = pipeline.build(
        model, [cut, {"prune": {"method": "wanda", "pattern": "2:4", "sweeps": 0}}], SPEC
    )
    before, after = (
        dict(parquet.read_tensors(folder / parquet.WEIGHTS)) for folder in (first, both)
    )
    for name in registry.describe(model)["linears"]:
        a, b = before[f"{name}.weight"], after[f"{name}.weight"]
        assert isinstance(b, Quantized) and (b.mask.view(-1, 4).sum(1) <= 2).all()
        assert torch.equal(b.dequantize(), a.dequantize() * b.mask) and torch.equal(
            b.codes[b.mask], a.codes[b.mask]
        )
    with pytest.raises(
        InputError, match="method = .?sparsegpt.?: magnitude or wanda with sweeps 0 after quantize"
    ):
        pipeline.build(model, [cut, PRUNE], SPEC)


@pytest.mark.parametrize("bits", [1.6, 2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_pruned_and_quantized_tensors_come_back_exactly(bits, symmetric, tmp_path):
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    kept = torch.rand(6, 24, generator=torch.Generator().manual_seed(1)) > 0.4
    value = rtn(weight, bits, 8, symmetric)
    value = Quantized(**{**vars(value), "codes": value.codes * kept, "mask": kept})
    parquet.write_weights(
        tmp_path / "w",
        {"a": value, "b": weight * kept, "c": torch.zeros(4, 4), "d": -torch.zeros(4, 4)},
    )
    found = dict(parquet.read_tensors(tmp_path / "w"))
    assert all(
        torch.equal(getattr(found["a"], part), getattr(value, part))
        for part in ("codes", "scale", "zero_point", "mask")
    )
    assert (
        torch.equal(found["a"].dequantize(), value.dequantize())
        and (value.dequantize()[~kept] == 0).all()
    )
    assert all(
        found[name].numpy().tobytes() == wanted.numpy().tobytes()
        for name, wanted in (
            ("b", weight * kept),
            ("c", torch.zeros(4, 4)),
            ("d", -torch.zeros(4, 4)),
        )
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sparsity": 0}, "p.sparsity = 0: a share between 0 and 1"),
        ({"sparsity": 1.0}, "p.sparsity = 1.0: a share between 0 and 1"),
        ({"sparsity": -0.5}, "p.sparsity = -0.5"),
        ({"pattern": "4:2"}, "p.pattern = '4:2': N:M, as in 2:4, with N below M"),
        ({"pattern": "2of4"}, "p.pattern = '2of4'"),
        ({"pattern": "2:4", "sparsity": 0.3}, "p.sparsity = 0.3: 0.5, which the pattern says"),
        (
            {"method": "wanda", "scope": "global"},
            "p.scope = 'global': no key of method wanda; magnitude has it",
        ),
        (
            {"method": "neurons", "pattern": "2:4"},
            "p.pattern = '2:4': no key of method neurons; magnitude, wanda and sparsegpt have it",
        ),
        (
            {"method": "wanda", "saliency": "activation"},
            "p.saliency = 'activation': no key of method wanda; neurons and heads have it",
        ),
        (
            {"method": "neurons", "saliency": "loudest"},
            "p.saliency = 'loudest': second-order or activation",
        ),
        (
            {"method": "random"},
            "p.method = 'random': magnitude, wanda, sparsegpt, neurons, heads or depth",
        ),
    ],
)
def test_wrong_parameters_are_refused(values, said):
    with pytest.raises(InputError) as refusal:
        parse(STEPS["prune"], values, "p")
    assert str(refusal.value).startswith(said)


def test_a_pattern_that_does_not_divide_is_refused_before_work(model):
    with pytest.raises(
        InputError, match="pattern = '2:7': N:M with M a divisor of the 64 columns of"
    ):
        pipeline.build(model, [{"prune": {"pattern": "2:7"}}], SPEC)


def test_moments_that_cannot_be_factorized_fall_back_to_wanda(model, monkeypatch):
    monkeypatch.setattr("kerf.prune.sparsegpt.inverse_factor", lambda H: (None, 1.0))
    made = pipeline.build(model, [{"prune": {"method": "sparsegpt", "sparsity": 0.47}}], SPEC)
    layers = meta(made)["result"]["layers"]
    assert any(
        layer["note"] == "sparsegpt gave no finite weights: pruned by wanda" for layer in layers
    )
    assert meta(made)["result"]["sparsity"] == pytest.approx(0.47, abs=0.01)


def test_the_same_seed_gives_the_same_bytes(model, monkeypatch):
    before = (pipeline.build(model, [PRUNE], SPEC) / parquet.WEIGHTS).read_bytes()
    monkeypatch.setenv("KERF_FRESH", "9999")
    assert (pipeline.build(model, [PRUNE], SPEC) / parquet.WEIGHTS).read_bytes() == before


def test_surgery_ends_at_the_least_squares_of_the_columns_that_stay():
    weight, X = problem(rows=5, columns=24)
    H = X.T @ X
    stay, found = obs_prune(weight, H, 10)
    assert len(stay) == 10 and (found != 0).any(0).nonzero()[:, 0].tolist() == stay.tolist()
    loss = damped(H, 0.01).double()
    best = weight.double() @ loss[:, stay] @ torch.linalg.inv(loss[stay][:, stay])
    assert torch.allclose(found[:, stay].double(), best, atol=1e-4)
    order = weight.square().sum(0).argsort(descending=True)[:10].sort().values
    largest = torch.zeros_like(weight)
    largest[:, order] = (
        weight.double() @ loss[:, order] @ torch.linalg.inv(loss[order][:, order])
    ).float()
    assert lost(weight, found, X) < lost(weight, largest, X)


@pytest.mark.parametrize("size", [1, 4])
def test_by_activation_the_quietest_units_go_and_the_rest_makes_up_for_them(size):
    weight, X = problem(rows=5, columns=24)
    H = X.T @ X
    stay, found = obs_prune(weight, H, 3 * 4 // size, size=size, saliency="activation")
    said = [
        float((X[:, place : place + size] @ weight[:, place : place + size].T).square().sum())
        for place in range(0, 24, size)
    ]
    loudest = sorted(range(24 // size), key=lambda unit: -said[unit])[: 3 * 4 // size]
    assert stay.tolist() == sorted(loudest)
    columns = torch.tensor([unit * size + place for unit in stay.tolist() for place in range(size)])
    loss = damped(H, 0.01).double()
    best = weight.double() @ loss[:, columns] @ torch.linalg.inv(loss[columns][:, columns])
    assert torch.allclose(found[:, columns].double(), best, atol=1e-4)
    assert lost(weight, obs_prune(weight, H, 3 * 4 // size, size=size)[1], X) < lost(
        weight, found, X
    )


def test_a_fixed_column_never_goes_and_takes_up_the_mean():
    weight, X = problem(rows=5, columns=24)
    X = torch.cat([X + 3, torch.ones(len(X), 1)], 1)
    whole = torch.cat([weight, torch.zeros(5, 1)], 1)
    stay, found = obs_prune(whole, X.T @ X, 12, fixed=1)
    assert 24 not in stay.tolist() and found[:, 24].abs().min() > 0
    assert float(((found - whole) @ X.T).mean(1).abs().max()) < 0.1 * float(
        (whole @ X.T).abs().mean()
    )


@pytest.mark.parametrize(
    ("neurons", "sparsity", "stay"),
    [
        (1536, 0.45, 832),
        (1536, 0.5, 768),
        (128, 0.4, 64),
        (48, 0.5, 24),
        (4, 0.99, 0),
        (3, 0.33, 2),
    ],
)
def test_as_many_neurons_stay_as_vector_units_like(neurons, sparsity, stay):
    assert left(neurons, sparsity) == stay


def test_without_neurons_the_model_is_a_plain_smaller_one(model, tmp_path):
    step = {"prune": {"method": "neurons", "sparsity": 0.25}}
    made = pipeline.build(model, [step], SPEC)
    opened = kerf.load(made)
    net = registry.network(opened)
    assert (
        net.config.intermediate_size == 96
        and json.loads((made / "config.json").read_text())["intermediate_size"] == 96
    )
    for out, into in architecture.neurons(net).items():
        assert net.get_submodule(out).weight.shape == (64, 96) and all(
            net.get_submodule(n).weight.shape == (96, 64) for n in into
        )
    net.save_pretrained(tmp_path / "plain")
    plain = type(net).from_pretrained(tmp_path / "plain")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids)[0], net(ids)[0])
    assert meta(made)["result"]["bytes_on_disk"] < 0.95 * registry.describe(model)["bytes"]
    chain = [
        step,
        {"reconstruct": {"steps": 20, "joint_steps": 10, "augmentation_factor": 1}},
        {"quantize": {"method": "gptq", "bits": 4, "group_size": 32}},
    ]
    whole = pipeline.build(model, chain, SPEC)
    linears = architecture.linears(registry.network(kerf.load(whole)))
    assert [list(layer.weight.shape) for layer in linears.values()] == [
        list(layer.weight.shape) for layer in architecture.linears(net).values()
    ]
    with pytest.raises(InputError, match="method = 'neurons': a step before quantize"):
        pipeline.build(model, [chain[2], step], SPEC)


@pytest.mark.parametrize(
    "chain",
    [
        [PRUNE, {"quantize": {"method": "rtn", "bits": 8}}],
        [
            {"quantize": {"method": "rtn", "bits": 2}},
            {"prune": {"method": "magnitude", "sparsity": 0.01}},
        ],
    ],
)
def test_what_a_chain_lost_of_a_layer_is_measured_on_the_float_model(model, chain):
    first, whole = (
        [row["error"] for row in meta(pipeline.build(model, steps, SPEC))["result"]["layers"]]
        for steps in (chain[:1], chain)
    )
    assert min(first) > 1e-3 and whole == pytest.approx(
        first, rel=0.1
    )  # the second step takes next to nothing


def test_neurons_of_a_network_that_is_not_understood_are_refused(model):
    net = registry.network(kerf.open_model(model))
    net.config.intermediate_size = 77
    with pytest.raises(
        InputError,
        match="feed-forward layers of intermediate_size, one after others in each block, as in BERT and Llama",
    ):
        architecture.neurons(net)


def test_units_of_many_columns_go_as_an_obvious_search_says():
    weight, X = problem(rows=5, columns=24)
    H = X.T @ X
    stay, found = obs_prune(weight, H, 5, size=4)
    loss, here = damped(H, 0.01).double(), list(range(6))
    solve = lambda units: _least_squares(weight.double(), loss, units, 4)  # noqa: E731
    here.remove(min(here, key=lambda unit: solve([u for u in here if u != unit])[1]))
    assert stay.tolist() == here
    assert torch.allclose(found, solve(here)[0].float(), atol=1e-4)


def _least_squares(W, H, units, size):
    """The best weight with nothing outside the units, and its loss."""
    columns = torch.cat([torch.arange(size) + unit * size for unit in units])
    best = torch.zeros_like(W)
    best[:, columns] = W @ H[:, columns] @ torch.linalg.inv(H[columns][:, columns])
    return best, float((((best - W) @ H) * (best - W)).sum())


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return str(
        write_causal(
            tmp_path_factory.mktemp("pruned") / "causal",
            num_key_value_heads=2,
            num_attention_heads=4,
            num_hidden_layers=3,
        )
    )


SMALL_SPEC = Calibration(samples=8, max_length=64)
EVALUATION = Evaluation(texts="news", num_chunks=2, seq_len=64, passages=2, restored=1, tasks=[])


def test_without_heads_a_language_model_is_a_plain_smaller_one(language_model, tmp_path):
    step = {"prune": {"method": "heads", "sparsity": 0.5}}
    made = pipeline.build(language_model, [step], SMALL_SPEC)
    net = kerf.load(made)
    assert (
        net.config.num_attention_heads,
        net.config.num_key_value_heads,
        net.config.head_dim,
    ) == (2, 1, 16)
    shapes = {
        name.rpartition(".")[2]: list(layer.weight.shape)
        for name, layer in architecture.linears(net).items()
    }
    assert [shapes[part] for part in ("q_proj", "k_proj", "v_proj", "o_proj")] == [
        [32, 64],
        [16, 64],
        [16, 64],
        [64, 32],
    ]
    net.save_pretrained(tmp_path / "plain")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(
            type(net).from_pretrained(tmp_path / "plain")(ids).logits, net(ids).logits
        )
        quantized = kerf.load(
            pipeline.build(language_model, [step, {"quantize": {"bits": 8}}], SMALL_SPEC)
        )
        assert quantized(ids).logits.shape == net(ids).logits.shape


def test_heads_that_stay_are_the_ones_that_were(language_model):
    net, reference = kerf.open_model(language_model), kerf.open_model(language_model)
    groups, _ = activations.read(activations.calibrate(language_model, SMALL_SPEC))
    batches = families.causal.batches(net, SMALL_SPEC)
    step = parse(STEPS["prune"], {"method": "heads", "sparsity": 0.5}, "prune")
    list(structured.prune_network(Calibrated(net, reference, groups, batches), step))
    for name, block in architecture.blocks(net).items():
        own = architecture.blocks(reference)[name].self_attn
        kept = [
            unit
            for unit in range(2)
            if torch.equal(
                block.self_attn.k_proj.weight, own.k_proj.weight[unit * 16 : unit * 16 + 16]
            )
        ]
        assert len(kept) == 1
        assert torch.equal(
            block.self_attn.q_proj.weight, own.q_proj.weight[kept[0] * 32 : kept[0] * 32 + 32]
        )
        assert torch.equal(
            block.self_attn.v_proj.weight, own.v_proj.weight[kept[0] * 16 : kept[0] * 16 + 16]
        )


def test_heads_of_bert_are_refused_and_it_says_what_is_understood(tmp_path):
    model = str(write_model(tmp_path / "encoder"))
    with pytest.raises(
        InputError,
        match="q_proj, k_proj, v_proj, o_proj and a configuration with head_dim, as in Llama and Qwen",
    ):
        pipeline.build(model, [{"prune": {"method": "heads", "sparsity": 0.5}}], SPEC)


def test_influence_is_what_a_loop_over_hidden_states_says(language_model):
    net = kerf.open_model(language_model)
    batches = families.causal.batches(net, SMALL_SPEC)
    found = depth.influence(net, batches)
    with torch.no_grad():
        states = [net(**batch, output_hidden_states=True).hidden_states for batch in batches]
    for index, value in enumerate(
        list(found.values())[:-1]
    ):  # the last of them has gone through the final norm
        cosines = [
            torch.cosine_similarity(each[index], each[index + 1], dim=-1).flatten()
            for each in states
        ]
        assert value == pytest.approx(1 - float(torch.cat(cosines).mean()), abs=1e-5)


def test_without_a_block_the_rest_moves_up_on_its_grid(language_model):
    chain = [
        {"quantize": {"bits": 4, "group_size": 32}},
        {"prune": {"method": "depth", "sparsity": 0.3}},
    ]
    before, made = (
        pipeline.build(language_model, chain[:1], SMALL_SPEC),
        pipeline.build(language_model, chain, SMALL_SPEC),
    )
    net, whole = kerf.load(made), kerf.load(before)
    assert net.config.num_hidden_layers == len(net.model.layers) == 2
    notes = {row["name"]: row["note"] for row in meta(made)["result"]["layers"]}
    stay = [
        index for index in range(3) if "stays" in notes[f"model.layers.{index}.self_attn.q_proj"]
    ]
    for index, old in enumerate(stay):
        assert torch.equal(
            net.model.layers[index].mlp.up_proj.weight, whole.model.layers[old].mlp.up_proj.weight
        )
    assert meta(made)["result"]["bytes_on_disk"] < meta(before)["result"]["bytes_on_disk"]
    rows = {
        row["name"]: row
        for row in evaluate.read(evaluate.compare(language_model, made, EVALUATION))[0]
    }
    speed = rows["speedup"]
    assert 0 < speed["low"] <= speed["value"] <= speed["high"] and speed["n"] == 15
    assert "speedup" not in {
        row["name"]
        for row in evaluate.read(evaluate.compare(language_model, before, EVALUATION))[0]
    }
    net.generate(torch.arange(5)[None], max_new_tokens=3, do_sample=False)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [{"prune": {"method": "depth", "sparsity": 0.5}}, {"quantize": {}}],
            "steps.1.method = 'depth': the last step",
        ),
        (
            [{"prune": {"method": "depth", "sparsity": 0.1}}],
            "sparsity = 0.1: .*3 blocks and not all; this leaves 3",
        ),
        (
            [{"prune": {"method": "heads", "sparsity": 0.9}}],
            "sparsity = 0.9: .*2 key and value heads of a block and not all; this leaves 0",
        ),
        (
            [{"prune": {"method": "neurons", "sparsity": 0.99}}],
            "sparsity = 0.99: .*128 neurons of a block and not all; this leaves 0",
        ),
        (
            [{"quantize": {}}, {"prune": {"method": "heads", "sparsity": 0.5}}],
            "method = 'heads': a step before quantize",
        ),
    ],
)
def test_structures_that_cannot_go_are_refused(language_model, steps, message):
    with pytest.raises(InputError, match=message):
        pipeline.build(language_model, steps, SMALL_SPEC)


def test_twice_as_fast_is_more_than_one_and_each_goes_first_in_turn(monkeypatch):
    asked = []
    monkeypatch.setattr(registry, "open_source", lambda model, source: source or "baseline")
    monkeypatch.setattr(
        measured_encoder,
        "predict_once",
        lambda opened, _: (
            asked.append(opened),
            time.sleep(0.02 if opened == "baseline" else 0.002),
        ),
    )
    ratios = latency.measure(
        {"model": "m", "candidate": "c", "family": "encoder", "latency_input": []}
    )
    assert len(ratios) == latency.ROUNDS and np.median(ratios) > 1
    assert {*asked[::2]} == {*asked[1::2]} == {"baseline", "c"}


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_pruned_and_quantized_in_one_pass(model, options):
    step = {"method": "gptq", "bits": 4, "group_size": 32, "clip": "hessian", **options}
    made = pipeline.build(model, [{"quantize": step}], SPEC)
    net, reference = registry.network(kerf.load(made)), registry.network(kerf.open_model(model))
    stored = dict(parquet.read_tensors(made / parquet.WEIGHTS))
    for name, layer in architecture.linears(net).items():
        quantized = stored[f"{name}.weight"]
        assert isinstance(quantized, Quantized) and not layer.weight[~quantized.mask].any()
        assert float(quantized.mask.float().mean()) == pytest.approx(0.5, abs=1e-3)
        if "pattern" in options:
            assert (quantized.mask.view(len(layer.weight), -1, 4).sum(2) == 2).all()
    result = meta(made)["result"]
    assert result["sparsity"] == pytest.approx(0.5, abs=0.01)
    apart = [
        {"prune": {"method": "magnitude", **options}},
        {"quantize": {**step, "sparsity": None, "pattern": None}},
    ]
    statistics = activations.second_moments(activations.calibrate(model, SPEC))
    name = next(iter(statistics))  # the first layer, which sees what the float model sees
    second, other = (
        statistics[name],
        registry.network(kerf.load(pipeline.build(model, apart, SPEC))),
    )
    whole, *cut = (each.get_submodule(name).weight.data for each in (reference, net, other))
    lost = [hessian.output_error(whole, each, second) for each in cut]
    assert lost[0] < 0.8 * lost[1]  # weights that go by what they cost, not by their size


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [{"quantize": {"sparsity": 0.5}}],
            "sparsity = 0.5: no key of method rtn; gptq has it",
        ),
        (
            [{"quantize": {"method": "gptq", "sparsity": 1.0}}],
            "sparsity = 1.0: a share between 0 and 1",
        ),
        (
            [{"quantize": {"method": "gptq", "pattern": "4:2"}}],
            "pattern = '4:2': N:M, as in 2:4, with N below M",
        ),
        (
            [{"quantize": {"method": "gptq", "pattern": "2:7"}}],
            "pattern = '2:7': N:M with M a divisor of the 64 columns of",
        ),
        (
            [PRUNE, {"quantize": {"method": "gptq", "sparsity": 0.5}}],
            "2.sparsity = 0.5: none: `sparsity` is only allowed in the first step",
        ),
    ],
)
def test_one_pass_is_refused_where_it_cannot_be(model, steps, message):
    with pytest.raises(InputError, match=message):
        pipeline.build(model, steps, SPEC)


def test_shares_by_sensitivity_spare_the_layer_that_matters(tmp_path):
    model = str(write_model(tmp_path / "model"))
    step = parse(
        STEPS["prune"],
        {"method": "wanda", "sparsity": 0.5, "allocation": "sensitivity", "sweeps": 0},
        "p",
    )
    shares = allocation.allocated(StepContext("prune", model, step, SPEC))
    sizes = {
        name: rows * columns
        for name, (rows, columns) in registry.describe(model)["linears"].items()
    }
    assert shares.keys() == sizes.keys() and len({*shares.values()}) > 1
    assert sum(shares[name] * size for name, size in sizes.items()) >= 0.499 * sum(sizes.values())
    made = pipeline.build(model, [{"prune": step.model_dump()}], SPEC)
    gone = {row["name"]: row["sparsity"] for row in meta(made)["result"]["layers"]}
    assert all(gone[name] == pytest.approx(share, abs=0.02) for name, share in shares.items())
    table = allocation.costs_by_level(StepContext("prune", model, step, SPEC))
    for name, costs in zip(table["layers"], table["costs"], strict=True):
        assert costs[0] == pytest.approx(0, abs=1e-6), (
            f"{name} costs something although nothing went"
        )
    uniform = sum(costs[allocation.LEVELS.index(0.5)] for costs in table["costs"])
    assert (
        sum(
            costs[allocation.LEVELS.index(shares[name])]
            for name, costs in zip(table["layers"], table["costs"], strict=True)
        )
        < uniform
    )


class OneLayer(torch.nn.Module):
    """A network of one linear layer without a bias."""

    def __init__(self, weight):
        super().__init__()
        self.layer = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
        self.layer.weight.data = weight

    def get_output_embeddings(self):
        return None

    def forward(self, x, attention_mask):
        return self.layer(x)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_alone_and_whole_a_layer_is_pruned_the_same_way(method):
    weight, X = problem(rows=8, columns=64)
    H, step = moments(iter([X]))[0], parse(STEPS["prune"], {"method": method, "sparsity": 0.5}, "p")
    net, reference = OneLayer(weight.clone()), OneLayer(weight.clone())
    batch = {"x": X[None], "attention_mask": torch.ones(1, len(X))}
    ((_, expected, _, _),) = prune_layers(Calibrated(net, reference, [["layer"]], [batch]), step)
    nothing, half = prune_at_levels(weight, H, step, (0.0, 0.5))
    assert torch.equal(nothing, weight) and torch.allclose(half, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"allocation": "sensitivity", "pattern": "2:4"},
            "allocation = 'sensitivity': uniform, or sensitivity with",
        ),
        (
            {"allocation": "sensitivity", "method": "neurons"},
            "allocation = 'sensitivity': no key of method neurons; magnitude, wanda and sparsegpt",
        ),
        (
            {"allocation": "sensitivity", "sparsity": 0.9},
            "sparsity = 0.9: at most 0.8 with allocation sensitivity",
        ),
    ],
)
def test_shares_that_cannot_be_are_refused(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        pipeline.build(str(write_model(tmp_path / "model")), [{"prune": values}], SPEC)


def test_shares_of_a_language_model_are_by_what_each_layer_costs_alone(language_model):
    step = parse(
        STEPS["prune"],
        {"method": "wanda", "sparsity": 0.5, "allocation": "sensitivity", "sweeps": 0},
        "p",
    )
    made = meta(pipeline.build(language_model, [{"prune": step.model_dump()}], SMALL_SPEC))[
        "result"
    ]
    assert (
        made["sparsity"] == pytest.approx(0.5, abs=0.02)
        and len({round(row["sparsity"], 1) for row in made["layers"]}) > 1
    )
    table = allocation.costs_by_level(StepContext("prune", language_model, step, SMALL_SPEC))
    second = activations.second_moments(activations.calibrate(language_model, SMALL_SPEC))
    net = kerf.open_model(language_model)
    ids = families.causal.held_batches(net, SMALL_SPEC)[0]["input_ids"][:1]
    with torch.no_grad():
        aim = net(ids).logits[0].softmax(-1)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"):
        (cut,) = prune_at_levels(
            (layer := net.get_submodule(name)).weight.data, second[name], step, (0.7,)
        )
        before, layer.weight.data = layer.weight.data, cut
        with torch.no_grad():
            found = net(ids).logits[0].softmax(-1)
        layer.weight.data = before
        cost = float((aim * (aim / found).log()).sum(-1).mean())
        assert cost > 1e-5 and table["costs"][table["layers"].index(name)][
            allocation.LEVELS.index(0.7)
        ] == pytest.approx(cost, rel=0.02)


def test_shares_of_a_reranker_are_refused(tmp_path):
    with pytest.raises(
        InputError,
        match="an encoder or a causal language model; allocation: sensitivity does not know rerankers yet",
    ):
        pipeline.build(
            str(write_reranker(tmp_path / "reranker")),
            [{"prune": {"allocation": "sensitivity", "sparsity": 0.5}}],
            SPEC,
        )
