"""Architectures that people use, as tiny models: quantized, pruned and loaded, with all their matrices covered."""

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from support.small import SPECIAL, byte_tokenizer

from kerf import pipeline
from kerf.calibration import activations, layer
from kerf.config import Calibration
from kerf.core.cache import meta
from kerf.core.errors import InputError
from kerf.formats import gptq_checkpoint
from kerf.models import registry
from kerf.models.coverage import LEAST
from kerf.tensors import parquet

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {**SIZES, "hidden_size": 32, "intermediate_size": 64}
DECODER = {**WIDE, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128}
MIXTURE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
CAUSAL = {
    "GPT2LMHead": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "MixtralForCausalLM": DECODER | MIXTURE,
    "Qwen3MoeForCausalLM": DECODER | MIXTURE | {"moe_intermediate_size": 32},
    "GptOssForCausalLM": DECODER | MIXTURE,
    "Phi3ForCausalLM": DECODER,
    "GPTNeoXForCausalLM": {**WIDE, "max_position_embeddings": 128},
    "FalconForCausalLM": {**SIZES, "hidden_size": 32, "new_decoder_architecture": False},
    "Gemma3ForCausalLM": DECODER | {"sliding_window": 16},
    "OPTForCausalLM": {**WIDE, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "Qwen3ForCausalLM": DECODER | {"tie_word_embeddings": True},
    "Llama4ForCausalLM": DECODER
    | MIXTURE
    | {"intermediate_size_mlp": 64, "interleave_moe_layer_step": 1},
    "Qwen3ForCausalLM untied": DECODER | {"tie_word_embeddings": False},
}
ENCODERS = {
    "AlbertModel": {**WIDE, "embedding_size": 16, "max_position_embeddings": 128},
    "T5EncoderModel": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "MPNetModel": {**WIDE, "max_position_embeddings": 130},
    "ModernBertModel": {**WIDE, "local_attention": 16, "cls_token_id": 0, "sep_token_id": 2},
    "GPT2Model": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
}
UNKNOWN = "Llama4ForCausalLM"  # whose experts no method knows
EXPERTS = ("MixtralForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM")
STEPS = {
    "rtn": {"quantize": {"method": "rtn", "bits": 4}},
    "gptq": {"quantize": {"method": "gptq", "bits": 4, "group_size": 16}},
    "sparsegpt": {"prune": {"method": "sparsegpt", "sparsity": 0.5}},
}
SPEC = Calibration(samples=16, max_length=32)


def write(folder, name):
    """A model of random weights that differ enough for sentences to differ."""
    class_name = name.split()[0].replace("GPT2LMHead", "GPT2LMHeadModel")
    kind = getattr(transformers, class_name)
    torch.manual_seed(0)
    net = kind(kind.config_class(**SPECIAL, **{**CAUSAL, **ENCODERS}[name]))
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    raw = folder.with_name(f"{folder.name}-raw") if name in ENCODERS else folder
    net.save_pretrained(raw)
    byte_tokenizer().save_pretrained(raw)
    if name in ENCODERS:
        modules = [Transformer(str(raw)), Pooling(32, pooling_mode="mean")]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each model, written when a test first asks for it, with its results in a folder of data of its own."""
    root, made = tmp_path_factory.mktemp("architectures"), {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KERF_DATA", str(root / "data"))

        def model(name):
            if name not in made:
                made[name] = write(root / name.replace(" ", "-"), name)
            return made[name]

        yield model


def build(model, step):
    folder = pipeline.build(model, [step], SPEC)
    return folder, meta(folder)["result"]


@pytest.mark.parametrize("name", [name for name in (*CAUSAL, *ENCODERS) if name != UNKNOWN])
@pytest.mark.parametrize("method", STEPS)
def test_every_architecture_is_compressed_stored_and_loaded(models, name, method):
    model = models(name)
    folder, result = build(model, STEPS[method])
    covered = result["coverage"]
    assert covered["share"] >= LEAST
    described, opened = registry.describe(model), registry.load(folder)
    total = sum(row["parameters"] for row in covered["components"])
    assert total == described["parameters"]
    # What a user loads has the modules and names of the original model.
    original = registry.open_model(model)
    assert [*opened.state_dict()] == [*original.state_dict()]
    kinds = [type(module) for module in original.modules()]
    assert [type(module) for module in opened.modules()] == kinds
    ids = torch.randint(3, 400, (2, 20), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def output(model):
        with torch.no_grad():
            return registry.families.of_opened(model).forward(model, batch)

    before, after = output(original), output(opened)
    assert after.isfinite().all() and not torch.equal(before, after)
    # The compressor's own network, with exactly the stored weights in it.
    stored = parquet.read_weights(folder / parquet.WEIGHTS)
    net = registry.network(original)
    missing = net.load_state_dict(stored, strict=False)
    assert not missing.unexpected_keys
    torch.testing.assert_close(output(original), after, rtol=1e-5, atol=1e-5)
    state = registry.network(opened).state_dict()
    assert all(torch.equal(state[key], value) for key, value in stored.items())
    assert {row["name"] for row in result["layers"]} == set(described["linears"])
    if method == "sparsegpt":
        zeros = [(stored[f"{layer}.weight"] == 0).float().mean() for layer in described["linears"]]
        assert min(zeros) > 0.45


@pytest.mark.parametrize("name", EXPERTS)
def test_each_expert_is_calibrated_on_the_tokens_routed_to_it(models, name):
    _, result = build(models(name), STEPS["gptq"])
    experts = {row["name"]: row for row in result["layers"] if "[" in row["name"]}
    assert len(experts) == 2 * 4 * 2
    ups = [row["note"] for layer, row in experts.items() if ".0." in layer and "up_" in layer]
    tokens = [int(note.split()[0]) for note in ups]
    total = int(ups[0].split()[2])
    assert sum(tokens) == 2 * total  # two experts a token
    assert all(
        n >= layer.FEW or "rounded to nearest" in note for n, note in zip(tokens, ups, strict=True)
    )
    by_name = {row["component"]: row for row in result["coverage"]["components"]}
    assert by_name["experts"]["changed"] > 0.9 * by_name["experts"]["parameters"]


@pytest.mark.parametrize("method", STEPS)
def test_what_would_stay_float_in_silence_is_refused_by_name(models, method):
    model, ((kind, keys),) = models(UNKNOWN), STEPS[method].items()
    with pytest.raises(InputError, match=r"allow_partial = False: .*layers\.\*\..*gate_up_proj"):
        build(model, {kind: keys})
    _, result = build(model, {kind: {**keys, "allow_partial": True}})
    covered = result["coverage"]
    assert covered["share"] < LEAST
    experts = next(row for row in covered["components"] if row["component"] == "experts")
    assert experts["parameters"] - experts["changed"] >= 49152
    assert sum(row["parameters"] for row in covered["float"] if "proj" in row["name"]) == 49152


def test_a_layer_that_runs_several_times_is_calibrated_on_all_calls(models):
    opened = registry.open_model(models("AlbertModel"))
    net, batches = (
        registry.network(opened),
        registry.families.of_opened(opened).batches(opened, SPEC),
    )
    inputs = []
    ffn = net.encoder.albert_layer_groups[0].albert_layers[0].ffn
    hook = ffn.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            net(**batch)
    hook.remove()
    assert len(inputs) == 2 * len(batches)  # two blocks share it
    mask = torch.cat([batch["attention_mask"].flatten() for batch in batches for _ in range(2)])
    X = torch.cat([x.flatten(0, 1) for x in inputs])[mask.bool()]
    moments = [group for group in activations.collect(net, batches) if "ffn" in group.names[0]][0]
    torch.testing.assert_close(moments.second, X.T @ X, rtol=1e-4, atol=1e-3)
    result = build(models("AlbertModel"), STEPS["gptq"])[1]
    notes = {row["name"].rpartition(".")[2]: row["note"] for row in result["layers"]}
    assert "all calls" in notes["ffn"] and "all calls" in notes["query"]
    assert notes["embedding_hidden_mapping_in"] == notes["pooler"] == ""


def test_an_expert_with_too_few_tokens_is_rounded_to_nearest(models, monkeypatch):
    monkeypatch.setattr(layer, "FEW", 256)
    step = {"quantize": {**STEPS["gptq"]["quantize"], "bits": 3}}
    _, result = build(models("MixtralForCausalLM"), step)
    notes = [row["note"] for row in result["layers"] if "[" in row["name"]]
    few = [note for note in notes if int(note.split()[0]) < 256]
    assert 0 < len(few) < len(notes)
    assert all("too few: rounded to nearest" in note for note in few)
    assert not any("nearest" in note for note in notes if note not in few)


@pytest.mark.parametrize("name", ["GPT2LMHead", "MixtralForCausalLM"])
def test_what_was_pruned_stays_pruned_and_has_no_layout_of_gptq_checkpoints(models, name, tmp_path):
    folder = pipeline.build(models(name), [STEPS["sparsegpt"], STEPS["gptq"]], SPEC)
    result = meta(folder)["result"]
    assert result["sparsity"] == pytest.approx(0.5, abs=0.01)
    matrices = {row["name"]: row["bits"] for row in result["layers"]}
    assert set(matrices.values()) == {4}
    with pytest.raises(InputError, match="no experts, no Conv1D"):
        gptq_checkpoint.export(folder, tmp_path / "exported")


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize("name", ["GPT2Model", "AlbertModel"])
def test_integer_kernels_run_transposed_and_shared_layers(models, name, backend):
    step = {"quantize": {"method": "static", "backend": backend}}
    folder, result = build(models(name), step)
    texts = ["A cat sat on the mat.", "Shares fell on Monday after a weak start."]
    opened, original = registry.load(folder), registry.open_model(models(name))
    before, after = (torch.tensor(model.encode(texts)) for model in (original, opened))
    assert float(torch.cosine_similarity(before, after).min()) > 0.995
    assert result["coverage"]["share"] == 1
