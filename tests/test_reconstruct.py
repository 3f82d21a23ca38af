"""Reconstruct: it starts exactly where the candidate is, learns, and never hands back anything worse."""

from dataclasses import replace

import pytest
import torch
from support.small import write_causal, write_model

from kerf import pipeline
from kerf.config import Calibration
from kerf.core.cache import meta
from kerf.core.errors import InputError
from kerf.data import corpora
from kerf.evaluate.likelihood import full_divergence, log_probabilities
from kerf.models import architecture, registry
from kerf.models.families import causal, encoder
from kerf.quantize.rounding import rtn
from kerf.tensors import parquet
from kerf.tensors.quantized import Quantized
from kerf.training import blockwise
from kerf.training.blocks import HiddenStates, ReconstructionUnit
from kerf.training.learnable_quantizer import LearnableQuantizer
from kerf.training.training_data import gather, spliced

SPEC = Calibration(samples=32, max_length=32)
START = {
    "quantize": {"method": "gptq", "bits": 2, "group_size": 32, "clip": "hessian", "embeddings": 4}
}
LEARN = {"reconstruct": {"steps": 40, "joint_steps": 40, "minutes": 5, "augmentation_factor": 2}}

GRIDS = [
    {"bits": 2, "group_size": 8},
    {"bits": 3, "group_size": 24},
    {"bits": 4, "group_size": 8, "symmetric": True},
    {"bits": 1.6, "group_size": 24},
    {"bits": 3, "group_size": 24, "per_tensor": True},
    {"bits": 2, "group_size": 8, "scale_dtype": torch.float32},
]


def quantized(**grid):
    return rtn(torch.randn(6, 24, generator=torch.Generator().manual_seed(0)), clip=True, **grid)


def same(a, b):
    return all(
        torch.equal(getattr(a, part), getattr(b, part)) for part in ("codes", "scale", "zero_point")
    )


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("rows", [None, torch.tensor([1, 4])])
def test_what_is_learned_starts_exactly_at_the_quantized_weight(grid, rows):
    start = quantized(**grid)
    learned = LearnableQuantizer(
        start, rows if len(start.scale) > 1 else None
    )  # rows of one shared grid cannot part
    rows = learned.rows
    assert torch.equal(learned(), start.dequantize()[rows])
    assert same(learned.result(), start) and learned.result().symmetric == start.symmetric


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_stored_is_what_was_computed_with(grid):
    learned = LearnableQuantizer(quantized(**grid))
    target = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam([p for p in learned.parameters() if p.requires_grad], lr=0.05)
    before = float((learned() - target).detach().square().sum())
    for _ in range(60):
        optimizer.zero_grad()
        (learned() - target).square().sum().backward()
        optimizer.step()
        learned.clamp_codes()
    assert float((learned() - target).detach().square().sum()) < 0.8 * before
    found = learned.result()
    assert torch.equal(found.dequantize(), learned().detach())
    assert (
        found.scale.dtype == learned.start.scale.dtype
        and found.stored_bits() == learned.start.stored_bits()
    )


@pytest.mark.parametrize("rows", [None, torch.tensor([1, 4])])
def test_what_is_pruned_is_0_while_it_is_learned(rows):
    kept = torch.rand(6, 24, generator=torch.Generator().manual_seed(2)) > 0.5
    start = replace(quantized(bits=3, group_size=8), mask=kept)
    learned = LearnableQuantizer(start, rows)
    assert torch.equal(learned(), start.dequantize()[learned.rows])
    assert torch.equal(learned.result().mask, kept)


def test_rows_that_take_no_part_stay():
    start, rows = quantized(bits=3, group_size=8), torch.tensor([0, 5])
    learned = LearnableQuantizer(start, rows)
    with torch.no_grad():
        learned.codes.add_(1)
        learned.scale.mul_(2)
    others = torch.tensor([1, 2, 3, 4])
    found = learned.result()
    assert torch.equal(found.dequantize()[others], start.dequantize()[others])
    assert not torch.equal(found.dequantize()[rows], start.dequantize()[rows])


def test_splices_begin_like_one_sentence_and_end_like_another():
    sequences = [[101, *range(start, start + 10), 102] for start in (200, 300, 400)]
    found = spliced(sequences, 5, 0)
    assert found[:3] == sequences and len(found) == 15
    assert all(
        s[0] == 101 and s[-1] == 102 and s.count(102) == 1 and 4 < len(s) <= 12 for s in found
    )
    assert any(s not in sequences for s in found)
    assert found == spliced(sequences, 5, 0)


def test_splices_of_chunks_keep_their_length_and_every_place():
    chunks = [[*range(start, start + 10)] for start in (200, 300, 400)]
    found = spliced(chunks, 5, 0, aligned=True)
    assert found[:3] == chunks and len(found) == 15 and any(chunk not in chunks for chunk in found)
    assert all([token % 100 for token in chunk] == list(range(10)) for chunk in found)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return str(write_causal(tmp_path_factory.mktemp("reconstruct") / "causal"))


def test_what_a_language_model_makes_of_its_last_states_is_what_it_says(language):
    opened = registry.open_model(language)
    batch = causal.batches(opened, Calibration(samples=4, max_length=32))[0]
    states = HiddenStates(opened, [batch])
    with torch.no_grad():
        for block in architecture.blocks(opened).values():
            states.advance(block)
        wanted = opened(**{**batch, "logits_to_keep": 0}).logits
        assert torch.allclose(
            architecture.after_blocks(opened, batch, states.states[0]), wanted, atol=1e-5
        )
        assert torch.equal(
            opened(**{**batch, "logits_to_keep": 0}).logits, wanted
        )  # nothing stays changed


def test_a_language_model_is_learned_back_by_what_it_says_and_its_embeddings_stay(language):
    spec = Calibration(samples=32, max_length=32)
    start = pipeline.build(language, [START], spec)
    made = pipeline.build(language, [START, LEARN], spec)
    held = meta(made)["result"]["held_back"]
    assert (
        held["loss"] == "mean KL divergence"
        and held["kept"]
        and held["after"] < 0.99 * held["before"]
    )
    original, learned = registry.open_model(language), registry.load(made)
    losses = []
    for batch in causal.held_batches(original, spec):
        with torch.no_grad():
            said, aim = (
                each(**{**batch, "logits_to_keep": 0}).logits[:, :-1].flatten(0, 1)
                for each in (learned, original)
            )
            losses.append(full_divergence(log_probabilities(aim), said))
    assert float(torch.cat(losses).mean()) == pytest.approx(
        held["after"], rel=1e-3
    )  # a vocabulary of 400 is kept whole
    name = "model.embed_tokens.weight"
    assert same(
        *(dict(parquet.read_tensors(folder / parquet.WEIGHTS))[name] for folder in (start, made))
    )
    assert [block["block"] for block in meta(made)["result"]["blocks"]] == [
        "model.layers.0",
        "model.layers.1",
        "all blocks",
    ]
    tokens, _ = causal.stream(causal.tokenizer(language), corpora.documents("news", "calibration"))
    count = len(causal.chunks(tokens, 32, causal.begins_with(causal.tokenizer(language))))
    with pytest.raises(InputError, match="calibration.samples = .*: at most"):
        gather(original, Calibration(texts="news", samples=count, max_length=32), 1)


def test_a_network_that_is_more_than_its_blocks_in_a_row_is_refused_before_learning(
    model, language
):
    for name in (model, language):
        opened = registry.open_model(name)
        batch = gather(opened, Calibration(samples=8, max_length=16), 1).held_out[0]
        net = registry.network(opened)
        architecture.check_blocks(net, batch)
        inside, body, last = (
            [False],
            getattr(net, "model", net),
            list(architecture.blocks(net).values())[-1],
        )

        def whole(*args, forward=body.forward, inside=inside, **kwargs):
            inside[0] = True
            try:
                return forward(*args, **kwargs)
            finally:
                inside[0] = False

        body.forward = whole
        last.register_forward_pre_hook(
            lambda _, args, inside=inside: (2 * args[0], *args[1:]) if inside[0] else None
        )  # between two blocks
        with pytest.raises(InputError, match="a network whose blocks all take the same arguments"):
            architecture.check_blocks(net, batch)


def test_pruned_weights_stay_0_while_the_rest_is_learned(model):
    chain = [{"prune": {"method": "magnitude", "sparsity": 0.4}}, START, LEARN]
    first, made = (pipeline.build(model, chain[:count], SPEC) for count in (2, 3))
    assert meta(made)["result"]["held_back"]["kept"]
    before, after = (
        dict(parquet.read_tensors(folder / parquet.WEIGHTS)) for folder in (first, made)
    )
    for name, value in before.items():
        if isinstance(value, Quantized) and value.mask is not None:
            assert (
                torch.equal(after[name].mask, value.mask)
                and (after[name].dequantize()[~value.mask] == 0).all()
            )


def test_a_pruned_model_learns_with_the_weights_it_has_left(model):
    cut = {"prune": {"method": "wanda", "pattern": "2:4"}}
    first, made = pipeline.build(model, [cut], SPEC), pipeline.build(model, [cut, LEARN], SPEC)
    held = meta(made)["result"]["held_back"]
    assert held["kept"] and held["after"] < 0.9 * held["before"]
    before, after = (parquet.read_weights(folder / parquet.WEIGHTS) for folder in (first, made))
    linear = [f"{name}.weight" for name in registry.describe(model)["linears"] if "layer" in name]
    assert all(
        (after[name][before[name] == 0] == 0).all() and not torch.equal(after[name], before[name])
        for name in linear
    )
    assert meta(made)["result"]["sparsity"] == meta(first)["result"]["sparsity"]


def test_all_blocks_together_put_out_what_the_network_does(model):
    """The joint stage runs embeddings and blocks itself: before it learns, its output is the network's."""
    opened = registry.open_model(model)
    net = registry.network(opened)
    batch = encoder.tokenized(
        opened, ["a short sentence", "another, which is longer than the first"], 2, 32
    )
    fit, target = HiddenStates(net, batch), HiddenStates(net, batch)
    names = list(architecture.blocks(net))
    for name in names:
        target.advance(net.get_submodule(name))
    grids = {"bits": 8, "group_size": 32}
    weights = {
        name: rtn(layer.weight.data, **grids)
        for name, layer in architecture.linears(net).items()
        if "layer" in name
    }
    for name, quantized in weights.items():
        net.get_submodule(name).weight.data = quantized.dequantize()
    stage = ReconstructionUnit(net, names, weights, fit)
    with torch.no_grad():
        wanted = net(**batch[0]).last_hidden_state
        mask = batch[0]["attention_mask"].bool()
        assert torch.allclose(stage.forward(fit, 0)[mask], wanted[mask], atol=1e-5)
    assert (
        stage.whole and len(stage.learned) == len(weights) and 0 < stage.error(fit, target) < 0.01
    )
    assert {id(p) for p in stage.floats} == {id(p) for p in net.parameters() if p.ndim == 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("reconstruct") / "model"))


@pytest.fixture(scope="module")
def pair(model):
    return pipeline.build(model, [START], SPEC), pipeline.build(model, [START, LEARN], SPEC)


def test_learning_lowers_the_error_on_text_held_back_and_loads_as_it_was_measured(model, pair):
    made = meta(pair[1])["result"]
    assert (
        made["held_back"]["kept"]
        and made["held_back"]["after"] < 0.98 * made["held_back"]["before"]
    )
    assert [block["block"] for block in made["blocks"]] == [
        "embeddings",
        "encoder.layer.0",
        "encoder.layer.1",
        "all blocks",
    ]
    assert all(block["after"] <= block["before"] for block in made["blocks"])
    loaded = registry.network(registry.load(pair[1])).state_dict()
    for name, tensor in parquet.read_tensors(pair[1] / parquet.WEIGHTS):
        weight = tensor.dequantize() if isinstance(tensor, Quantized) else tensor
        assert torch.equal(loaded[name], weight)


def test_codes_keep_their_widths_and_the_file_its_size(pair):
    start, learned = (dict(parquet.read_tensors(folder / parquet.WEIGHTS)) for folder in pair)
    assert start.keys() == learned.keys()
    for name, tensor in start.items():
        if isinstance(tensor, Quantized):
            assert tensor.stored_bits() == learned[name].stored_bits()
    assert meta(pair[1])["result"]["linear_bits"] == meta(pair[0])["result"]["linear_bits"]


def test_the_same_seed_gives_the_same_bytes(model, pair, monkeypatch):
    before = (pair[1] / parquet.WEIGHTS).read_bytes()
    monkeypatch.setenv("KERF_FRESH", "9999")
    assert (pipeline.build(model, [START, LEARN], SPEC) / parquet.WEIGHTS).read_bytes() == before


def test_a_result_that_is_worse_on_held_back_text_is_dropped(model, pair, monkeypatch):
    def spoil(net, reference, weights, *_, **__):
        for name, quantized in weights.items():
            weights[name] = replace(quantized, codes=torch.zeros_like(quantized.codes))
            net.get_submodule(name).weight.data = weights[name].dequantize()
        return weights

    monkeypatch.setattr(blockwise, "reconstruct", spoil)
    found = pipeline.build(
        model, [START, {"reconstruct": {**LEARN["reconstruct"], "steps": 41}}], SPEC
    )
    held = meta(found)["result"]["held_back"]
    assert not held["kept"] and held["after"] > held["before"]
    assert (found / parquet.WEIGHTS).read_bytes() == (pair[0] / parquet.WEIGHTS).read_bytes()


def test_the_time_budget_ends_it_early(model):
    hurried = pipeline.build(
        model,
        [START, {"reconstruct": {"steps": 100_000, "minutes": 0.05, "augmentation_factor": 1}}],
        SPEC,
    )
    assert all(block["steps"] < 100_000 for block in meta(hurried)["result"]["blocks"])


def test_it_is_refused_without_a_quantized_source_and_without_text_to_hold_back(model):
    with pytest.raises(InputError, match="steps.1 = 'reconstruct': a step after quantize or prune"):
        pipeline.build(model, [LEARN], SPEC)
    with pytest.raises(InputError, match="calibration.samples = 1279: at most"):
        pipeline.build(model, [START, LEARN], Calibration(texts="news", samples=1279))
