"""Awkward weights and inputs: the result is right, or refused with the layer's name; never NaN."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import write_model
from transformers.pytorch_utils import Conv1D

from kerf import pipeline
from kerf.calibration import activations
from kerf.calibration.layer import Calibrated
from kerf.config import Calibration
from kerf.config.quantize import Gptq
from kerf.core.errors import InputError
from kerf.models import architecture, linearized
from kerf.quantize.compress import compress
from kerf.tensors import parquet
from kerf.tensors.quantized import Quantized

WIDTH, OPTIONS = 16, {"method": "gptq", "group_size": 8}


class Net(torch.nn.Module):
    """Embeddings, two layers that share an input, and one after them."""

    def __init__(self, seed=0, size=1.0):
        super().__init__()
        torch.manual_seed(seed)
        self.words = torch.nn.Embedding(12, WIDTH)
        self.left, self.right, self.last = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
        for layer in (self.left, self.right, self.last):
            layer.weight.data = size * torch.randn(WIDTH, WIDTH)

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids)
        return self.last(torch.tanh(self.left(x)) * torch.tanh(self.right(x)))


def batches(tokens, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(12, (1, tokens), generator=generator) for _ in range(count)]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]


def quantize(net, text, step, reference=None):
    """name -> (weight before, weight after, note); the net is changed."""
    before = {
        name: layer.weight.detach().clone() for name, layer in architecture.linears(net).items()
    }
    groups = activations.groups_of(net, text[0])
    copy = reference or type(net)()
    copy.load_state_dict(net.state_dict())
    found = {
        name: note for name, _, note, _ in compress(Calibrated(net, copy, groups, text), step, {})
    }
    return {
        name: (before[name], architecture.linears(net)[name].weight, found[name]) for name in before
    }


INPUTS = {
    "ordinary": lambda w: w,
    "dead features": lambda w: w.index_fill(1, torch.tensor([0, 3, 7]), 0),
    "duplicated features": lambda w: w[:, [0] * 8 + list(range(8))],
    "all zero": lambda w: w * 0,
    "constant": lambda w: w * 0 + 1,
    "tiny": lambda w: w * 1e-20,
    "huge": lambda w: w * 1e15,
}


@settings(max_examples=120, deadline=None, database=None)
@given(
    st.sampled_from(sorted(INPUTS)),
    st.sampled_from([1e-30, 1e-5, 1.0, 1e4, 1e30]),
    st.sampled_from([1.6, 2, 3, 4, 8]),
    st.sampled_from([1, 2, 40]),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from(["none", "mse", "hessian"]),
    st.booleans(),
    st.integers(0, 3),
)
def test_weights_are_finite_and_close_or_the_layer_is_named(
    inputs, size, bits, tokens, dtype, clip, whole, seed
):
    net = Net(seed, size)
    net.words.weight.data = INPUTS[inputs](net.words.weight.data)
    step = Gptq(
        **OPTIONS,
        bits=bits,
        clip=clip,
        scale_dtype=dtype,
        embeddings=32,
        asymmetric_calibration=whole,
    )
    try:
        found = quantize(net, batches(tokens, seed=seed), step)
    except InputError as refusal:
        assert dtype == "float16" and size >= 1e4
        assert any(f"'{name}'" in str(refusal) for name in ("left", "right", "last"))
        return
    except ValueError as error:  # what a layer reads has overflowed
        assert "NaN or infinity" in str(error) and size >= 1e4
        return
    for before, after, _ in found.values():
        assert after.isfinite().all()
        assert after.abs().max() <= 4 * before.abs().max() + 1e-6  # nothing ran away
    if bits == 8 and inputs == "ordinary" and size == 1 and not whole:
        for before, after, _ in found.values():
            assert (before - after).norm() < 0.1 * before.norm()


def test_layers_that_are_one_tensor_stay_one():
    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.last.weight = self.left.weight

    net = Tied()
    found = quantize(net, batches(30), Gptq(**OPTIONS, bits=3, embeddings=32), reference=Tied())
    assert net.last.weight is net.left.weight and torch.equal(found["last"][1], found["left"][1])
    assert (
        found["last"][2] == "the same tensor as another layer's"
        and len(found["left"][1].unique()) > 8
    )


def test_a_weight_that_is_not_contiguous_gives_the_codes_of_its_copy():
    plain, strided = Net(1), Net(1)
    for layer in architecture.linears(strided).values():
        layer.weight.data = layer.weight.data.T.contiguous().T
    step = Gptq(**OPTIONS, bits=3, clip="hessian", embeddings=32)
    for one, other in zip(
        *(quantize(net, batches(30), step).values() for net in (plain, strided)), strict=True
    ):
        assert torch.equal(one[1], other[1])


def test_a_layer_called_twice_is_quantized_once():
    class Twice(Net):
        def forward(self, input_ids, attention_mask):
            return self.left(torch.tanh(self.left(self.words(input_ids))))

    found = quantize(
        Twice(), batches(30, count=3), Gptq(**OPTIONS, bits=3, embeddings=32), reference=Twice()
    )
    assert "moments of all calls" in found["left"][2] and found["left"][1].isfinite().all()
    assert "no calibration text reached it" in found["right"][2]


def test_a_transposed_layer_becomes_a_linear_one_and_is_stored_as_it_was():
    net, x = torch.nn.Sequential(torch.nn.Linear(4, 4), Conv1D(6, 4)), torch.randn(3, 4)
    before, output = {**net.state_dict()}, net(x)
    linearized.linearized(net)
    assert type(net[1]) is torch.nn.Linear and net[1].weight.shape == (6, 4)
    torch.testing.assert_close(net(x), output)
    stored = linearized.restored(net.state_dict(), linearized.transposed(net))
    assert stored.keys() == before.keys()
    assert all(torch.equal(stored[name], value) for name, value in before.items())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("numerics") / "model")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sources_are_read_as_what_they_are(model, dtype, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    half = tmp_path / dtype
    shutil.copytree(model, half)
    weights = {
        name: value.to(getattr(torch, dtype))
        for name, value in load_file(model / "model.safetensors").items()
    }
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    step = {"quantize": {"method": "gptq", "bits": 8, "embeddings": 8}}
    folder = pipeline.build(str(half), [step], Calibration(samples=8, max_length=16))
    for name, value in parquet.read_tensors(folder / parquet.WEIGHTS):
        if isinstance(value, Quantized):
            assert (value.dequantize() - weights[name].float()).norm() < 0.03 * weights[
                name
            ].float().norm()
        else:
            assert torch.equal(value, weights[name].float())


def test_one_sentence_is_enough_and_the_same_seed_gives_the_same_bytes(model, monkeypatch):
    step = {"quantize": {"method": "gptq", "bits": 2, "group_size": 32, "clip": "hessian"}}
    first = (
        pipeline.build(str(model), [step], Calibration(samples=1, max_length=4)) / parquet.WEIGHTS
    )
    before = first.read_bytes()
    assert all(
        t.dequantize().isfinite().all()
        for _, t in parquet.read_tensors(first)
        if isinstance(t, Quantized)
    )
    monkeypatch.setenv("KERF_FRESH", "9999")
    assert (
        pipeline.build(str(model), [step], Calibration(samples=1, max_length=4)) / parquet.WEIGHTS
    ).read_bytes() == before
