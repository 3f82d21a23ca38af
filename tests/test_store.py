"""The store: what is written comes back exactly, and a file that changed since is refused by name."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from kerf.core.cache import digest
from kerf.core.errors import InputError
from kerf.models import manifest
from kerf.quantize.rounding import rtn
from kerf.tensors import parquet
from kerf.tensors.quantized import Quantized


def quantized(bits=4, group_size=4, symmetric=False, dtype=torch.float16, per_tensor=False):
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(int(bits)))
    return rtn(weight, bits, group_size, symmetric, scale_dtype=dtype, per_tensor=per_tensor)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.fixture
def weights(tmp_path):
    """A small file with a quantized and a float tensor."""
    path = tmp_path / parquet.WEIGHTS
    parquet.write_weights(path, {"layer.weight": quantized(), "layer.bias": torch.arange(3.0)})
    return path


@pytest.fixture
def candidate(tmp_path):
    """A small candidate's directory."""
    model, folder = tmp_path / "model", tmp_path / "candidate"
    for name in (
        "config.json",
        "vocab.txt",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "model.safetensors",
    ):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(f"content of {name}")
    (model / "modules.json").write_text(
        json.dumps([{"path": path} for path in ("", "1_Pooling", "2_Dense")])
    )
    folder.mkdir()
    manifest.write_candidate(
        folder, model, {"layer.weight": quantized()}, {"model": "m", "steps": []}
    )
    return folder


@pytest.mark.parametrize("bits", [1.6, *range(2, 9)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "grid",
    [{"group_size": 12}, {"group_size": 4}, {"per_tensor": True}, {"dtype": torch.float32}],
    ids=str,
)
def test_quantized_tensors_come_back_exactly(bits, symmetric, grid, tmp_path):
    value = quantized(bits, symmetric=symmetric, **grid)
    parquet.write_weights(tmp_path / "w", {"a": value})
    found = dict(parquet.read_tensors(tmp_path / "w"))["a"]
    assert isinstance(found, Quantized)
    assert all(
        same(getattr(found, part), getattr(value, part))
        for part in ("codes", "scale", "zero_point")
    )
    assert (found.bits, found.group_size, found.symmetric) == (
        bits,
        value.group_size,
        value.symmetric,
    )
    assert same(parquet.read_weights(tmp_path / "w")["a"], value.dequantize())


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([[1.5, -0.0, float("inf")], [1e-40, 3e38, float("nan")]]),
        torch.randn(5).half(),
        torch.arange(4),
        torch.tensor([True, False]),
        torch.tensor(2.5),
        torch.empty(0, 3),
        torch.randn(4, 3).T,
        torch.nn.Parameter(torch.ones(2)),
    ],
    ids=[
        "special values",
        "half",
        "integers",
        "bool",
        "scalar",
        "empty",
        "transposed",
        "parameter",
    ],
)
def test_float_tensors_come_back_bit_for_bit(value, tmp_path):
    parquet.write_weights(tmp_path / "w", {"a": value})
    found = dict(parquet.read_tensors(tmp_path / "w"))["a"]
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert found.numpy().tobytes() == value.detach().contiguous().numpy().tobytes()


def test_tensors_keep_their_order(tmp_path):
    names = ["z", "a", "m.weight"]
    parquet.write_weights(tmp_path / "w", {name: torch.ones(1) for name in names})
    assert list(dict(parquet.read_tensors(tmp_path / "w"))) == names


def test_a_dtype_that_could_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises((TypeError, ValueError), match="float64"):
        parquet.write_weights(tmp_path / "w", {"a": torch.ones(2, dtype=torch.float64)})


def test_weights_cut_off_at_any_byte_are_refused_by_name(weights):
    whole = weights.read_bytes()
    for length in range(len(whole)):
        weights.write_bytes(whole[:length])
        with pytest.raises(InputError, match=parquet.WEIGHTS):
            dict(parquet.read_tensors(weights))


def test_an_edited_byte_of_the_weights_never_gives_other_weights(weights):
    whole, before = weights.read_bytes(), parquet.read_weights(weights)
    for place in range(len(whole)):
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            after = parquet.read_weights(weights)
        except InputError as refusal:
            assert parquet.WEIGHTS in str(refusal)
        else:
            assert after.keys() == before.keys() and all(
                same(after[name], before[name]) for name in before
            )


def test_a_newer_schema_and_a_foreign_table_are_refused(weights):
    table = pq.read_table(weights)
    for version in ({"kerf.schema": "4"}, {}):
        pq.write_table(table.replace_schema_metadata(version), weights)
        with pytest.raises(InputError, match=f"{parquet.WEIGHTS}: has schema .*this Kerf reads 3"):
            dict(parquet.read_tensors(weights))


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="absent.parquet"):
        dict(parquet.read_tensors(tmp_path / "absent.parquet"))


def test_a_candidate_holds_the_models_small_files_but_not_its_weights(candidate):
    card = manifest.verify(candidate)
    assert set(card["files"]) == {
        "config.json",
        "vocab.txt",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        parquet.WEIGHTS,
    }
    assert (card["model"], card["steps"], card["schema"]) == ("m", [], parquet.SCHEMA)


def test_size_tells_weight_files_from_the_rest(candidate):
    sizes = {path: path.stat().st_size for path in candidate.rglob("*") if path.is_file()}
    weight_bytes = (
        sizes[candidate / parquet.WEIGHTS] + sizes[candidate / "2_Dense/model.safetensors"]
    )
    assert manifest.size(candidate) == {
        "bytes_on_disk": weight_bytes,
        "other_bytes": sum(sizes.values()) - weight_bytes,
    }


@pytest.mark.parametrize("name", [parquet.WEIGHTS, "config.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("change", ["missing", "truncated", "edited", "longer"])
def test_a_file_that_changed_is_refused_by_name(candidate, name, change):
    path = candidate / name
    whole = path.read_bytes()
    path.unlink()
    if change != "missing":
        path.write_bytes(
            {"truncated": whole[:-1], "edited": whole[:-1] + b"\0", "longer": whole + b"\0"}[change]
        )
    with pytest.raises(InputError, match=name):
        manifest.verify(candidate)


def test_every_edited_byte_of_the_weights_is_found_by_verify(candidate):
    path = candidate / parquet.WEIGHTS
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=parquet.WEIGHTS):
            manifest.verify(candidate)


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"files": {}}, {"steps": [1]}, {"schema": 4}, {"new": 1}]
)
def test_an_edited_card_is_refused(candidate, change):
    card = json.loads((candidate / manifest.CARD).read_text())
    (candidate / manifest.CARD).write_text(json.dumps({**card, **change}))
    with pytest.raises(InputError, match=f"{manifest.CARD}: was edited"):
        manifest.verify(candidate)


def test_a_card_of_a_newer_schema_is_refused_as_such(candidate):
    card = json.loads((candidate / manifest.CARD).read_text())
    card = {**card, "schema": 4}
    del card["sha256"]
    (candidate / manifest.CARD).write_text(json.dumps({**card, "sha256": digest(card)}))
    with pytest.raises(InputError, match="has schema 4; this Kerf reads 3"):
        manifest.verify(candidate)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"3", b"null", b"{}", b'"sha256"', b"\xff\xfe"]
)
def test_a_card_that_is_missing_or_no_card_is_refused(candidate, content):
    (candidate / manifest.CARD).unlink()
    if content is not None:
        (candidate / manifest.CARD).write_bytes(content)
    with pytest.raises(InputError, match=manifest.CARD):
        manifest.verify(candidate)
