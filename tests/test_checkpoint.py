"""GPTQ checkpoints: the layout bit by bit, out of a candidate and back in, and what it cannot say."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.small import write_causal, write_model

import kerf
from kerf import pipeline
from kerf.config import Calibration
from kerf.core.cache import meta
from kerf.core.errors import InputError
from kerf.formats import gptq_checkpoint, imported
from kerf.formats.gptq_checkpoint import Checkpoint, export, pack_layer, unpack_layer
from kerf.tensors import parquet
from kerf.tensors.quantized import Quantized

SPEC = Calibration(samples=8, max_length=64)


def quantized(bits, rows=32, columns=64, group_size=32, seed=0, zeros=None) -> Quantized:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, columns), generator=generator, dtype=torch.uint8)
    groups = columns // group_size
    scale = (torch.rand(rows, groups, generator=generator) + 0.01).half()
    zero_point = (
        torch.randint(2**bits, (rows, groups), generator=generator).float()
        if zeros is None
        else zeros
    )
    return Quantized(codes, scale, zero_point, bits, group_size, False)


def field(words, index, bits) -> int:
    """The index-th value in a list of 32-bit words, read bit by bit."""
    found = 0
    for bit in range(bits):
        place = index * bits + bit
        found |= ((int(words[place // 32]) & 0xFFFFFFFF) >> (place % 32) & 1) << bit
    return found


@pytest.mark.parametrize("bits", gptq_checkpoint.BITS)
@pytest.mark.parametrize("form", gptq_checkpoint.FORMATS)
def test_every_weight_follows_from_the_words_by_definition(bits, form):
    layer = quantized(bits)
    parts, weight = pack_layer("layer", layer, form), layer.dequantize()
    assert parts["qweight"].shape == (64 * bits // 32, 32) and parts["qzeros"].shape == (
        2,
        32 * bits // 32,
    )
    assert (
        parts["scales"].dtype == torch.float16
        and parts["qweight"].dtype == parts["g_idx"].dtype == torch.int32
    )
    for row in range(32):
        for column in range(64):
            group = int(parts["g_idx"][column])
            code = field(parts["qweight"][:, row], column, bits)
            zero = field(parts["qzeros"][group], row, bits) + (
                form == "gptq"
            )  # as readers do that do not wrap
            assert zero <= 2**bits - 1 or form == "gptq_v2"
            assert float(parts["scales"][group, row]) * (code - zero) == float(weight[row, column])


@given(
    bits=st.sampled_from(gptq_checkpoint.BITS),
    form=st.sampled_from(gptq_checkpoint.FORMATS),
    seed=st.integers(0, 999),
    shared=st.sampled_from([32, 64]),
    low=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_layer_comes_back_as_it_was(bits, form, seed, shared, low):
    zeros = torch.zeros(32, 64 // shared) if low else None  # zero points of 0 everywhere
    layer = quantized(bits, group_size=shared, seed=seed, zeros=zeros)
    back = unpack_layer(pack_layer("layer", layer, form), bits, form)
    assert torch.equal(back.codes, layer.codes) and torch.equal(back.scale, layer.scale)
    assert torch.equal(back.zero_point, layer.zero_point) and torch.equal(
        back.dequantize(), layer.dequantize()
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_point_that_borrowed_from_its_neighbour_is_read_right(bits):
    """As gptqmodel writes v1: one less in every field of the whole word, whatever overflows."""
    layer = quantized(bits, zeros=torch.randint(0, 2, (32, 2)).float())
    parts = pack_layer("layer", layer, "gptq_v2")
    parts["qzeros"] = parts["qzeros"] - sum(1 << shift for shift in range(0, 32, bits))
    assert torch.equal(unpack_layer(parts, bits, "gptq").dequantize(), layer.dequantize())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_causal(tmp_path_factory.mktemp("checkpoint") / "model"))


def candidate(model, **step):
    return pipeline.build(
        model,
        [{"quantize": {"method": "gptq", "bits": 4, "group_size": 32, "clip": "hessian", **step}}],
        SPEC,
    )


@pytest.mark.parametrize("form", gptq_checkpoint.FORMATS)
@pytest.mark.parametrize(
    "step",
    [
        {},
        {"bits": 3},
        {"bits": 2, "clip": "none"},
        {"bits": 8, "group_size": None, "symmetric": True},
    ],
    ids=["4", "3", "2", "8"],
)
def test_a_candidate_goes_out_and_comes_back_in_with_every_weight(model, tmp_path, form, step):
    made = candidate(model, embeddings=32, **step)
    out = export(made, tmp_path / "out", form)
    said = json.loads((out / "quantize_config.json").read_text())
    assert (said["bits"], said["group_size"]) == (
        step.get("bits", 4),
        step.get("group_size", 32) or -1,
    )
    assert json.loads((out / "config.json").read_text())["quantization_config"] == said
    grid = {"bits": said["bits"], "group_size": step.get("group_size", 32), "embeddings": 32}
    back = pipeline.build(
        model, [{"quantize": {"method": "checkpoint", "checkpoint": str(out), **grid}}], SPEC
    )
    before, after = kerf.load(made).state_dict(), kerf.load(back).state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    assert (
        abs(meta(back)["result"]["linear_bits"] - meta(made)["result"]["linear_bits"])
        <= said["bits"] / 32
    )


def test_word_embeddings_are_cut_beside_a_checkpoint_as_the_step_says(model, tmp_path):
    out = export(candidate(model, embeddings=32), tmp_path / "out")
    step = {
        "method": "checkpoint",
        "checkpoint": str(out),
        "bits": 4,
        "group_size": 32,
        "embeddings": 5,
    }
    stored = dict(
        parquet.read_tensors(pipeline.build(model, [{"quantize": step}], SPEC) / parquet.WEIGHTS)
    )
    assert stored["model.embed_tokens.weight"].bits == 5


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (
            {"bits": 5},
            r"bits = 5: 2, 3, 4 or 8 in a GPTQ checkpoint \(model.layers.0.self_attn.q_proj\)",
        ),
        (
            {"bits": 2},
            "CANDIDATE = .?model.layers.0.self_attn.q_proj.?: whole zero points, as 2 bits have with symmetric true",
        ),
        ({"scale_dtype": "float32"}, "scale_dtype = .?float32.?: float16 in a GPTQ checkpoint"),
    ],
    ids=["bits", "half", "scales"],
)
def test_what_the_layout_cannot_say_is_refused(model, tmp_path, step, said):
    with pytest.raises(InputError, match=said):
        export(candidate(model, **step), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(model, tmp_path):
    made = candidate(model)
    with pytest.raises(InputError, match="format = .?awq.?: gptq or gptq_v2"):
        export(made, tmp_path / "out", "awq")
    with pytest.raises(InputError, match="a folder that does not exist yet"):
        export(made, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="FOLDER = .*: a directory that can be written"):
        export(made, tmp_path / "file" / "out")
    encoder = str(write_model(tmp_path / "encoder"))
    with pytest.raises(InputError, match="a candidate of a causal language model"):
        export(pipeline.build(encoder, [{"quantize": {"bits": 4}}], SPEC), tmp_path / "out")


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export(candidate(model), tmp_path_factory.mktemp("exported") / "out")


def altered(exported, tmp_path, change):
    """A copy whose settings and tensors went through change(settings, tensors)."""
    copy = shutil.copytree(exported, tmp_path / "copy")
    settings, tensors = (
        json.loads((copy / "quantize_config.json").read_text()),
        load_file(copy / "model.safetensors"),
    )
    change(settings, tensors)
    (copy / "quantize_config.json").write_text(json.dumps(settings))
    save_file(tensors, copy / "model.safetensors")
    return copy


NAME = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "step", "said"),
    [
        (
            lambda s, t: s.update(quant_method="awq"),
            {},
            "checkpoint = .*: quant_method gptq, bits 2, 3, 4 or 8",
        ),
        (lambda s, t: s.update(bits=5), {}, "not gptq, 5 bits"),
        (
            lambda s, t: s.update(bits=8),
            {"bits": 8},
            "model.layers.0.self_attn.q_proj.?: tensors that fit together at 8 bits",
        ),
        (
            lambda s, t: s.update(dynamic={"x": 1}),
            {},
            "one width for all layers; this one has a `dynamic`",
        ),
        (
            lambda s, t: t.update(
                {f"lm_head.{part}": t[f"{NAME}.{part}"].clone() for part in gptq_checkpoint.PARTS}
            ),
            {},
            "which has no linear layer lm_head",
        ),
        (lambda s, t: None, {"bits": 8}, "bits = 8: 4, the bits of"),
        (lambda s, t: None, {"group_size": 16}, "group_size = 16: 32, that of"),
        (lambda s, t: t.pop(f"{NAME}.scales"), {}, f"{NAME} has qweight and no scales"),
        (
            lambda s, t: t.update({f"{NAME}.g_idx": t[f"{NAME}.g_idx"].flip(0).contiguous()}),
            {},
            f"{NAME}.g_idx.?: groups of neighbouring",
        ),
        (
            lambda s, t: t.update({"model.norm.weight": torch.ones(3)}),
            {},
            "which has no model.norm.weight",
        ),
        (lambda s, t: t.pop("model.norm.weight"), {}, "with model.norm.weight"),
        (lambda s, t: t.pop("model.embed_tokens.weight"), {}, "with model.embed_tokens.weight"),
        (
            lambda s, t: [t.pop(f"{NAME}.{part}") for part in gptq_checkpoint.PARTS],
            {},
            f"a checkpoint of this model, with {NAME}",
        ),
    ],
    ids=[
        "method",
        "width",
        "words",
        "dynamic",
        "head",
        "bits",
        "group",
        "part",
        "order",
        "shape",
        "norm",
        "words missing",
        "layer",
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(model, exported, tmp_path, change, step, said):
    folder = altered(exported, tmp_path, change)
    step = {"method": "checkpoint", "checkpoint": str(folder), "bits": 4, "group_size": 32, **step}
    with pytest.raises(InputError, match=said):
        pipeline.build(model, [{"quantize": step}], SPEC)


def test_what_autogptq_adds_to_a_llama_is_left_out(model, exported, tmp_path):
    def change(settings, tensors):
        tensors |= {
            f"{NAME}.bias": torch.zeros(128),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        }

    step = {"method": "checkpoint", "bits": 4, "group_size": 32}
    plain, theirs = (
        pipeline.build(model, [{"quantize": {**step, "checkpoint": str(each)}}], SPEC)
        for each in (exported, altered(exported, tmp_path, change))
    )
    assert (plain / parquet.WEIGHTS).read_bytes() == (theirs / parquet.WEIGHTS).read_bytes()


def test_a_checkpoint_that_changed_is_read_again(model, exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    step = {
        "quantize": {"method": "checkpoint", "checkpoint": str(copy), "bits": 4, "group_size": 32}
    }
    before = kerf.load(pipeline.build(model, [step], SPEC)).get_submodule(NAME).weight
    tensors = load_file(copy / "model.safetensors")
    tensors[f"{NAME}.scales"] = 2 * tensors[f"{NAME}.scales"]
    save_file(tensors, copy / "model.safetensors")
    assert torch.equal(
        kerf.load(pipeline.build(model, [step], SPEC)).get_submodule(NAME).weight, 2 * before
    )


def test_it_is_refused_before_anything_is_calibrated(model, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "kerf.calibration.activations.calibrate", lambda *_: pytest.fail("calibrated")
    )
    folder = altered(exported, tmp_path, lambda s, t: t.pop(f"{NAME}.scales"))
    for path, said in (
        (folder, "has qweight and no scales"),
        (tmp_path / "none", "checkpoint = .*none.*: a directory"),
    ):
        with pytest.raises(InputError, match=said):
            pipeline.build(
                model,
                [
                    {
                        "quantize": {
                            "method": "checkpoint",
                            "checkpoint": str(path),
                            "bits": 4,
                            "group_size": 32,
                        }
                    }
                ],
                SPEC,
            )


def test_gptqmodel_is_offered_where_it_is_not_installed(model, monkeypatch, tmp_path):
    monkeypatch.setattr(imported, "python", lambda: tmp_path / "gptqmodel" / "bin" / "python")
    with pytest.raises(
        InputError, match="method = .?gptqmodel.?: an environment for it: `make peers`"
    ):
        pipeline.build(
            model, [{"quantize": {"method": "gptqmodel", "bits": 4, "group_size": 32}}], SPEC
        )


STANDS_IN = """
import json, shutil, sys
asked = json.load(open(sys.argv[1]))
assert len(asked["tokens"]) == 8 and all(len(ids) == 64 for ids in asked["tokens"]) and asked["group_size"] == 32
shutil.copytree({checkpoint!r}, sys.argv[2], dirs_exist_ok=True)
json.dump({{"seconds": 7000.0, "peak_rss_bytes": 10**15}}, open(sys.argv[2] + "/figures.json", "w"))
"""


def test_what_gptqmodel_made_is_taken_over_with_what_it_cost(
    model, exported, monkeypatch, tmp_path
):
    script = tmp_path / "run.py"
    script.write_text(STANDS_IN.format(checkpoint=str(exported)))
    (tmp_path / "gptqmodel.txt").write_text("")
    monkeypatch.setattr(imported, "python", lambda: Path(sys.executable))
    monkeypatch.setattr(imported, "_script", lambda: script)
    step = {"bits": 4, "group_size": 32}
    theirs, read = (
        pipeline.build(model, [{"quantize": {**step, **how}}], SPEC)
        for how in ({"method": "gptqmodel"}, {"method": "checkpoint", "checkpoint": str(exported)})
    )
    assert (theirs / parquet.WEIGHTS).read_bytes() == (read / parquet.WEIGHTS).read_bytes()
    made = meta(theirs)["result"]
    assert made["compress_seconds"] > 7000 and made["compress_peak_rss_bytes"] == 10**15
    script.write_text("raise SystemExit('it went wrong')")
    with pytest.raises(RuntimeError, match="gptqmodel ended with 1: it went wrong"):
        pipeline.build(model, [{"quantize": {**step, "method": "gptqmodel"}}], SPEC)


def test_a_pruned_candidate_goes_out_with_its_zeros(model, tmp_path):
    chain = [
        {"prune": {"method": "magnitude"}},
        {"quantize": {"method": "gptq", "bits": 4, "group_size": 32, "embeddings": 32}},
    ]
    made = pipeline.build(model, chain, SPEC)
    step = {
        "method": "checkpoint",
        "checkpoint": str(export(made, tmp_path / "out")),
        "bits": 4,
        "group_size": 32,
        "embeddings": 32,
    }
    before, after = (
        kerf.load(folder).state_dict()
        for folder in (made, pipeline.build(model, [{"quantize": step}], SPEC))
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_folder_without_settings_is_no_checkpoint(model):
    with pytest.raises(InputError, match="a folder with quantize_config.json"):
        Checkpoint.open(kerf.models.registry.resolve(model))


def test_only_a_first_step_of_a_language_model_is_taken_from_elsewhere(model, exported, tmp_path):
    step = {
        "quantize": {
            "method": "checkpoint",
            "checkpoint": str(exported),
            "bits": 4,
            "group_size": 32,
        }
    }
    with pytest.raises(InputError, match="method = .?checkpoint.?: a first step"):
        pipeline.build(model, [{"quantize": {"bits": 8}}, step], SPEC)
    with pytest.raises(InputError, match="method = .?checkpoint.?: a causal language model"):
        pipeline.build(str(write_model(tmp_path / "encoder")), [step], SPEC)
    with pytest.raises(InputError, match="quantize.checkpoint is missing: a GPTQ checkpoint"):
        pipeline.build(model, [{"quantize": {"method": "checkpoint"}}], SPEC)


def test_readers_of_the_first_format_find_what_they_would_not_tie_or_look_up(model, tmp_path):
    made = pipeline.build(model, [{"quantize": {"bits": 4, "group_size": 32}}], SPEC)
    for form in gptq_checkpoint.FORMATS:
        folder = gptq_checkpoint.export(made, tmp_path / form, form)
        tensors, config = (
            load_file(folder / "model.safetensors"),
            json.loads((folder / "config.json").read_text()),
        )
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        assert ("lm_head.weight" in tensors) == (form == "gptq")
        if form == "gptq":
            assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
            assert config["quantization_config"]["meta"]["quantizer"][1:] == ["gptqmodel:0.9.0"]
