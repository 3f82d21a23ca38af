"""On-grid weights: found with their bits and groups, and nothing found where there is no grid."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small import write_causal

import kerf
from kerf import pipeline
from kerf.config import Calibration
from kerf.core.cache import meta
from kerf.models import registry
from kerf.models.grid_detection import grid_of
from kerf.quantize.rounding import rtn


def weight(rows=96, columns=192, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


HALVES = [
    (bits, torch.float16) for bits in (2, 3, 4, 5)
]  # more bits, and float16 rounds values off their grid


@pytest.mark.parametrize(
    ("bits", "dtype"), [*((bits, torch.float32) for bits in (2, 3, 4, 5, 8)), *HALVES]
)
@pytest.mark.parametrize("group_size", [16, 32, 64, 192])
def test_a_grid_is_found_with_its_groups(bits, group_size, dtype):
    cut = rtn(weight(), bits, group_size).dequantize().to(dtype).float()
    assert grid_of(cut) == (bits, group_size)


def test_values_that_only_come_near_a_grid_lie_on_none():
    codes = torch.randint(16, (96, 192), generator=torch.Generator().manual_seed(0))
    assert grid_of(codes.float()) == (4, 192)
    assert (
        grid_of(torch.arange(16.0)[codes] ** 1.5) is None
    )  # a codebook of uneven steps, as NF4 has


def test_few_levels_are_a_grid():
    assert grid_of(rtn(weight(), 1.6, 192, symmetric=True, clip=True).dequantize()) == (2, 192)
    assert grid_of(weight().sign()) == (1, 192)


def test_a_grid_with_any_lowest_value_is_found():
    codes = torch.randint(16, (96, 6, 32), generator=torch.Generator().manual_seed(0))
    low, step = torch.randn(96, 6, 1), torch.rand(96, 6, 1) + 0.1  # as Q4_1 has it
    assert grid_of((codes * step + low).view(96, 192)) == (4, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_grid_is_found_in_floats(dtype):
    assert grid_of(weight().to(dtype).float()) is None
    assert grid_of((0.02 * weight(seed=1)).to(dtype).float()) is None
    assert grid_of(torch.zeros(96, 192)) is None and grid_of(weight(columns=8)) is None
    assert grid_of(weight(columns=1)) is None


def test_the_language_model_that_its_package_ships_lies_on_the_grids_it_was_stored_in():
    described = registry.describe("smollm2")
    assert {name: described["on_grid"][name] for name in described["linears"]} == dict.fromkeys(
        described["linears"],
        {"bits": 4, "group_size": 32},  # Q4_1
    )
    assert described["on_grid"]["model.embed_tokens"] == {"bits": 8, "group_size": 32}  # Q8_0


def test_a_model_says_which_layers_lie_on_a_grid_and_a_candidate_which_it_only_read_again(tmp_path):
    folder = write_causal(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.weight"] = rtn(tensors[f"{name}.weight"], 4, 32).dequantize()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert registry.describe(str(folder))["on_grid"] == {name: {"bits": 4, "group_size": 32}}
    step = {"quantize": {"bits": 4, "group_size": 32, "embeddings": 32}}
    made = pipeline.build(str(folder), [step], Calibration(samples=4, max_length=32))
    assert [layer["name"] for layer in meta(made)["result"]["layers"] if layer["reread"]] == [name]
    assert torch.equal(kerf.load(made).get_submodule(name).weight, tensors[f"{name}.weight"])
