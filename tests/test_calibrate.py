"""Calibration statistics of a tiny random BERT, against plain numpy."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from kerf.calibration.activations import Moments, collect
from kerf.models.architecture import linears

MASKS = [[[1, 1, 1, 1], [1, 1, 0, 0]], [[1, 1, 1], [0, 1, 1]], [[1]]]
TOKENS = sum(np.sum(mask) for mask in MASKS)
TEXTS = sum(len(mask) for mask in MASKS)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    return BertModel(BertConfig(vocab_size=50, max_position_embeddings=8, **size)).eval()


@pytest.fixture(scope="module")
def batches():
    masks = [torch.tensor(mask) for mask in MASKS]
    return [{"input_ids": torch.randint(50, mask.shape), "attention_mask": mask} for mask in masks]


@pytest.fixture(scope="module")
def groups(net, batches):
    return list(collect(net, batches))


@pytest.fixture(scope="module")
def inputs(net, batches):
    """Every layer's inputs (tokens, features) as numpy: a hook a layer, padding left out token by token."""
    seen = {name: [] for name in linears(net)}
    hooks = [
        m.register_forward_hook(lambda _, a, __, n=n: seen[n].append(a[0]))
        for n, m in linears(net).items()
    ]
    with torch.no_grad():
        for batch in batches:
            net(**batch)
    for hook in hooks:
        hook.remove()

    def real(pieces):
        for x, batch in zip(pieces, batches, strict=True):
            for text, mask in zip(x.double().numpy(), batch["attention_mask"].numpy(), strict=True):
                yield from text[mask == 1] if text.ndim == 2 else [text]

    return {name: np.array(list(real(pieces))) for name, pieces in seen.items()}


def test_query_key_and_value_are_one_group_and_layers_come_in_the_order_they_run(groups):
    layer = [
        ["attention.self.query", "attention.self.key", "attention.self.value"],
        ["attention.output.dense"],
    ]
    layer += [["intermediate.dense"], ["output.dense"]]
    expected = [
        [f"encoder.layer.{i}.{name}" for name in group] for i in range(2) for group in layer
    ]
    assert [group.names for group in groups] == [*expected, ["pooler.dense"]]


def test_tokens_count_without_padding_and_the_pooler_sees_one_a_text(groups):
    assert {group.names[0]: group.tokens for group in groups if group.tokens != TOKENS} == {
        "pooler.dense": TEXTS
    }


def test_second_moments_and_ranges_are_those_of_numpy(groups, inputs):
    for group in groups:
        for name in group.names:
            X = inputs[name]
            assert len(X) == group.tokens
            np.testing.assert_allclose(group.second.numpy(), X.T @ X, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(group.fourth.numpy(), (X**4).sum(0), rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(group.minimum.numpy(), X.min(0).astype(np.float32))
            np.testing.assert_array_equal(group.maximum.numpy(), X.max(0).astype(np.float32))


def test_outlier_figures_are_those_of_numpy(groups, inputs):
    for group in groups:
        X = inputs[group.names[0]]
        power, figures = (X**2).sum(0), group.figures()
        assert figures["features"] == X.shape[1] and figures["dead"] == 0
        assert figures["peak_over_rms"] == pytest.approx(
            np.abs(X).max() / np.sqrt((X**2).mean()), rel=1e-4
        )
        assert figures["kurtosis"] == pytest.approx((X**4).mean() / (X**2).mean() ** 2, rel=1e-4)
        assert figures["top_1_percent_share"] == pytest.approx(power.max() / power.sum(), rel=1e-4)


def test_what_padding_holds_does_not_matter(net, batches, groups):
    changed = [
        {**b, "input_ids": torch.where(b["attention_mask"] == 1, b["input_ids"], 49)}
        for b in batches[:1]
    ]
    for before, after in zip(
        list(collect(net, batches[:1])), list(collect(net, changed)), strict=True
    ):
        torch.testing.assert_close(before.second, after.second)


def test_inputs_that_are_all_zero_have_figures_without_nan():
    moments = Moments.of(["a"], torch.zeros(2, 3))
    moments.add(torch.zeros(2, 3))
    assert moments.figures() == {
        "features": 3,
        "peak_over_rms": 0,
        "kurtosis": 0,
        "top_1_percent_share": 0,
        "dead": 3,
    }


def test_no_hook_is_left_even_when_the_network_fails(net, batches):
    with pytest.raises(IndexError):
        list(collect(net, [*batches, {**batches[0], "input_ids": batches[0]["input_ids"] + 1000}]))
    assert not any(module._forward_pre_hooks for module in net.modules())
