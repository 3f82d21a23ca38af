"""What belongs to a model travels and counts, what does not does neither; what it lacks is refused by name."""

import json
import os
import shutil
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from support.small import write_causal, write_model, write_reranker
from transformers import (
    BertForPreTraining,
    BertModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

import kerf
from kerf.config import Calibration
from kerf.core.errors import InputError
from kerf.core.paths import data_folder
from kerf.models import families, manifest, model_files, registry
from kerf.quantize.rounding import rtn
from kerf.tensors import parquet

FAMILIES = ("encoder", "causal", "reranker")
TEXTS = ["A man plays the guitar.", "Über 3 Hunde!", "", "one two three " * 40]
TEMPLATE = "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
SMALL = {  # names that libraries write, and what must travel whatever it is called
    "chat_template.jinja": TEMPLATE,
    "additional_chat_templates/tool_use.jinja": "tools " + TEMPLATE,
    "generation_config.json": '{"max_new_tokens": 7}',
    "merges.txt": "a b",
    "spiece.model": "\x0a\x05model",
    "qwen.tiktoken": "IQ== 0",
    "source.spm": "\x0a\x05spm",
    "bpe.codes": "a b 1",
    "prophetnet.tokenizer": "[PAD]",
    "LICENSE": "Apache",
    "LICENSE.txt": "MIT",
    "NOTICE.md": "notice",
    "USE_POLICY.md": "use",
    "README.md": "# Card",
    "vocab": "a",
    "added_tokens.json": "{}",
    "preprocessor_config.json": "{}",
    "index.json": "{}",
}
ELSE = {  # what is no part of it
    "pytorch_model.bin": b"\x80\x02pickle",
    "training_args.bin": b"PK\x03\x04",
    "optimizer.pt": b"PK\x03\x04",
    "rng_state": b"\x80\x04",
    "modeling_own.py": b"1",
    "model.onnx": b"onnx",
    "tf_model.h5": b"\x89HDF",
    "flax_model.msgpack": b"x",
    "model-q4.gguf": b"GGUF",
    "rust_model.ot": b"x",
    ".gitattributes": b"x",
    "onnx/model.onnx": b"onnx",
    "openvino/openvino_model.bin": b"x",
    "original/params.json": b"{}",
    "runs/events": b"x",
    "consolidated.safetensors": None,
    "checkpoint-500/model.safetensors": None,
    "checkpoint-500/config.json": b"{}",
    "best/model.safetensors": None,
    "original/consolidated.safetensors": None,
    "model.safetensors.index.json": b'{"weight_map": {"a": "old-00001-of-00001.safetensors"}}',
    "old-00001-of-00001.safetensors": None,
}


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """What these tests make of their models stays out of the clone's data."""
    with pytest.MonkeyPatch.context() as patch:
        registry.resolve("minilm")
        folder = tmp_path_factory.mktemp("data")
        (folder / "sources").symlink_to(data_folder() / "sources")
        patch.setenv("KERF_DATA", str(folder))
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data):
    """A directory of each family, and an encoder with a head of its own behind the pooling."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        "encoder": write_model(folder / "encoder"),
        "causal": write_causal(folder / "causal"),
        "reranker": write_reranker(folder / "reranker"),
    }
    torch.manual_seed(0)
    headed = SentenceTransformer(str(made["encoder"]), device="cpu")
    headed.append(Dense(64, 32))
    headed.save_pretrained(str(folder / "headed"), create_model_card=False)
    return made | {"headed": folder / "headed"}


@pytest.fixture
def copy(plain, tmp_path):
    """A function that copies the directory of a family, to be changed."""
    return lambda family: shutil.copytree(plain[family], tmp_path / family)


def write(folder, files, weights=b""):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = weights if content is None else content
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def candidate_of(model, folder, **changes):
    """A candidate at 8 bits, rounded to nearest; changes: names and tensors that are put into its weights, None for none."""
    opened = registry.open_model(str(model))
    net = registry.network(opened)
    tied = getattr(net, "all_tied_weights_keys", None) or {}
    state = {name: value for name, value in net.state_dict().items() if name not in tied}
    cut = {
        name: rtn(value, 8, value.shape[1]) if value.ndim == 2 else value
        for name, value in state.items()
    } | changes
    card = {
        "model": str(model),
        "kind": families.name_of(model),
        "class": type(net).__name__,
        "steps": [],
    }
    folder.mkdir()
    manifest.write_candidate(
        folder, model, {name: value for name, value in cut.items() if value is not None}, card
    )
    return folder


def ids(opened, family):
    """Every way in which a text becomes tokens, and what is said of them."""
    reader = families.FAMILIES[family].reader(opened)
    second = [text[::-1] for text in TEXTS]
    found = [reader(text)["input_ids"] for text in TEXTS] + [
        reader(a, b)["input_ids"] for a, b in zip(TEXTS, second, strict=True)
    ]
    messages = [{"role": "query", "content": TEXTS[0]}, {"role": "document", "content": TEXTS[1]}]
    for name in reader.chat_template if isinstance(reader.chat_template, dict) else [None]:
        found.append(reader.apply_chat_template(messages, chat_template=name)["input_ids"])
    return [*found, reader.all_special_ids, reader.model_max_length, reader.padding_side]


def answers(opened, family):
    """What a model makes of TEXTS."""
    if family == "causal":
        told = [opened(torch.tensor([[row % 400 for row in ids(opened, family)[0]]])).logits]
        return [*told, opened.generate(torch.tensor([[5, 6]]), do_sample=False)]
    if family == "reranker":
        return [opened.predict([(TEXTS[0], text) for text in TEXTS], convert_to_tensor=True)]
    return [
        opened.encode(TEXTS, convert_to_tensor=True),
        opened.encode(TEXTS, prompt_name="query", convert_to_tensor=True),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_candidate_reads_every_text_as_its_baseline_does(copy, family, tmp_path):
    model = write(copy(family), SMALL)
    if family == "encoder":
        told = json.loads((model / "config_sentence_transformers.json").read_text())
        (model / "config_sentence_transformers.json").write_text(
            json.dumps({**told, "prompts": {"query": "search: "}})
        )
    folder = candidate_of(model, tmp_path / "candidate")
    before, after = registry.open_model(str(model)), kerf.load(folder)
    assert (
        ids(after, family) == ids(before, family) and len(ids(before, family)) == 2 * len(TEXTS) + 5
    )
    with torch.no_grad():
        for one, other in zip(answers(before, family), answers(after, family), strict=True):
            assert one.shape == other.shape
            assert one.dtype == torch.int64 or (one - other).norm() < 0.05 * one.norm()
    if family == "causal":
        assert (
            after.generation_config.to_dict() == before.generation_config.to_dict()
            and after.generation_config.max_new_tokens == 7
        )
    for path in (
        path for path in model.rglob("*") if path.is_file() and path.name != "model.safetensors"
    ):
        assert (folder / path.relative_to(model)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("family", [*FAMILIES, "headed"])
def test_what_is_no_part_of_a_model_neither_counts_nor_travels(copy, plain, family, tmp_path):
    model = copy(family)
    before = {
        key: registry.describe(str(model))[key] for key in ("bytes", "other_bytes", "parameters")
    }
    digest = registry.weights_digest(model)
    write(model, ELSE, (plain["encoder"] / "model.safetensors").read_bytes())
    found = registry.describe(str(model))
    assert {key: found[key] for key in before} == before and registry.weights_digest(
        model
    ) == digest
    folder = candidate_of(model, tmp_path / "candidate")
    assert not [name for name in ELSE if (folder / name).exists()]
    heads = ["3_Dense/model.safetensors"] if family == "headed" else []
    assert (
        sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
        == heads
    )
    assert manifest.size(folder)["bytes_on_disk"] == sum(
        (folder / name).stat().st_size for name in [*heads, parquet.WEIGHTS]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_are_on_the_device_of_the_network(plain, family):
    opened, spec = registry.open_model(str(plain[family])), Calibration(samples=8)
    opened.to("meta")
    module = families.FAMILIES[family]
    for batch in [*module.batches(opened, spec), *module.held_batches(opened, spec)]:
        assert {value.device.type for value in batch.values() if torch.is_tensor(value)} == {"meta"}


@pytest.mark.parametrize("name", SMALL)
def test_every_small_file_changes_what_the_model_is(copy, name):
    model = write(copy("causal"), SMALL)
    before = registry.weights_digest(model)
    (model / name).write_text((model / name).read_text() + " ")
    assert registry.weights_digest(model) != before


def test_an_old_layout_keeps_its_transformer_in_a_folder(copy, tmp_path):
    model = copy("headed")
    size = registry.describe(str(model))["bytes"]
    (model / "0_Transformer").mkdir()
    for path in [
        path
        for path in model.iterdir()
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json")
    ]:
        path.rename(model / "0_Transformer" / path.name)
    modules = json.loads((model / "modules.json").read_text())
    (model / "modules.json").write_text(
        json.dumps([{**modules[0], "path": "0_Transformer"}, *modules[1:]])
    )
    write(model, {"model.safetensors": save({"of an earlier layout": torch.zeros(2)})})
    assert registry.describe(str(model))["bytes"] == size
    folder = candidate_of(model, tmp_path / "candidate")
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")] == [
        "3_Dense/model.safetensors"
    ]
    torch.testing.assert_close(
        *(
            each.encode(TEXTS, convert_to_tensor=True)
            for each in (registry.open_model(str(model)), kerf.load(folder))
        ),
        rtol=0.1,
        atol=0.05,
    )


def test_parts_of_a_sharded_model_are_counted_by_its_index(copy):
    model = copy("causal")
    registry.open_model(str(model)).save_pretrained(model / "parts", max_shard_size="40KB")
    (model / "model.safetensors").unlink()
    for path in (model / "parts").glob("model*"):
        path.rename(model / path.name)
    shutil.rmtree(model / "parts")
    parts = sorted(model.glob("model-*.safetensors"))
    write(model, {"model-00009-of-00009.safetensors": save({"of an earlier save": torch.zeros(2)})})
    assert len(parts) > 2 and model_files.weights(model) == parts
    assert registry.describe(str(model))["bytes"] == sum(path.stat().st_size for path in parts)


def test_a_hub_is_asked_for_what_travels_and_for_no_more():
    def comes(name):
        wanted, not_wanted = (
            [fnmatch(name, each) for each in patterns]
            for patterns in (model_files.WANTED, model_files.UNWANTED)
        )
        return any(wanted) and not any(not_wanted)

    assert [name for name in SMALL if not comes(name) and name != "vocab"] == []
    assert [
        name
        for name in ("model.safetensors", "3_Dense/model.safetensors", "0_Transformer/config.json")
        if not comes(name)
    ] == []
    leftovers = (
        "model.safetensors.index.json",
        "old-00001-of-00001.safetensors",
        "best/model.safetensors",
    )  # which the names alone do not tell
    assert [name for name in ELSE if comes(name) and name not in leftovers] == []


def refusal(model):
    with pytest.raises(InputError) as caught:
        registry.open_model(str(model))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model = ")
    return str(caught.value)


def changed(model, change, name="model.safetensors"):
    """The directory with other tensors."""
    tensors = change(load_file(model / name))
    save_file(
        {key: value.clone() for key, value in tensors.items()},
        model / name,
        metadata={"format": "pt"},
    )
    return model


LAYER = {
    "encoder": "encoder.layer.1.output.dense.weight",
    "causal": "model.layers.1.mlp.up_proj.weight",
    "reranker": "bert.encoder.layer.1.output.dense.weight",
}
NORM = {
    "encoder": "embeddings.LayerNorm.bias",
    "causal": "model.norm.weight",
    "reranker": "bert.pooler.dense.bias",
}
WORDS = {
    "encoder": "embeddings.word_embeddings.weight",
    "causal": "model.embed_tokens.weight",
    "reranker": "classifier.weight",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("names", [LAYER, NORM, WORDS], ids=["layer", "norm", "embeddings or head"])
@pytest.mark.parametrize("fault", ["missing", "shape", "type"])
def test_a_tensor_that_is_not_as_configured_is_refused_by_name(copy, family, names, fault):
    name = names[family]
    change = {
        "missing": lambda w: {key: value for key, value in w.items() if key != name},
        "shape": lambda w: {**w, name: w[name].repeat_interleave(2, 0)},
        "type": lambda w: {**w, name: w[name].to(torch.int8)},
    }[fault]
    message = refusal(changed(copy(family), change))
    assert (
        name in message
        and {"missing": " missing (", "shape": "1 of another shape", "type": "I8"}[fault] in message
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("extra", ["a layer", "a part of a layer", "something else"])
def test_a_tensor_that_nothing_uses_is_refused_by_name(copy, family, extra):
    name = {
        "a layer": LAYER[family].replace(".1.", ".2."),
        "a part of a layer": LAYER[family].replace("weight", "lora_A.weight"),
        "something else": "own.weight",
    }
    message = refusal(changed(copy(family), lambda w: {**w, name[extra]: w[LAYER[family]]}))
    assert f"1 unexpected ({name[extra]})" in message


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fault", ["missing", "shape", "unexpected"])
def test_so_is_one_of_a_candidate(plain, family, fault, tmp_path):
    name = LAYER[family]
    change = {
        "missing": {name: None},
        "shape": {name: torch.zeros(3, 64)},
        "unexpected": {f"{name}.own": torch.ones(2)},
    }[fault]
    folder = candidate_of(plain[family], tmp_path / "candidate", **change)
    with pytest.raises(InputError, match=name) as caught:
        kerf.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {"linear.weight": w["linear.weight"]},
        lambda w: {**w, "linear.weight": torch.ones(3, 3)},
        lambda w: {**w, "linear.own": torch.ones(3)},
    ],
    ids=["missing", "shape", "unexpected"],
)
def test_the_head_of_an_encoder_must_be_whole_too(copy, change):
    assert "linear." in refusal(changed(copy("headed"), change, "3_Dense/model.safetensors"))


def test_a_reranker_without_a_head_is_refused(copy):
    message = refusal(
        changed(
            copy("reranker"),
            lambda w: {key: value for key, value in w.items() if not key.startswith("classifier")},
        )
    )
    assert "2 missing (classifier.bias, classifier.weight)" in message


@pytest.mark.parametrize("lacks", ["pooler", "tied head", "old buffers", "untied head"])
def test_what_a_family_rightly_lacks_or_has_is_no_fault(copy, lacks, tmp_path):
    buffers = {"embeddings.position_ids": torch.arange(512)[None]}
    if lacks == "pooler":
        model = changed(
            copy("encoder"),
            lambda w: {key: value for key, value in w.items() if not key.startswith("pooler")},
        )
        first, second = (
            registry.network(registry.open_model(str(model))).pooler.dense.weight for _ in range(2)
        )
        assert torch.equal(first, second)
    elif lacks == "tied head":
        model = copy("causal")
        assert "lm_head.weight" not in load_file(model / "model.safetensors")
    elif lacks == "untied head":
        model = changed(write_causal(tmp_path / "untied", tie_word_embeddings=False), lambda w: w)
    else:
        model = changed(copy("encoder"), lambda w: {**w, **buffers})
    assert registry.describe(str(model))["parameters"]
    assert kerf.load(candidate_of(model, tmp_path / "candidate"))


@pytest.mark.parametrize("library", ["sentence-transformers", "transformers"])
def test_heads_of_a_pretrained_encoder_are_no_fault(copy, library):
    model = copy("encoder")
    BertForPreTraining(BertModel.from_pretrained(model).config).save_pretrained(model)
    assert any(
        name.startswith("cls.seq_relationship") for name in load_file(model / "model.safetensors")
    )
    if library == "transformers":
        (model / "modules.json").unlink()
    assert registry.open_model(str(model)).encode("a").shape == (64,)


@pytest.mark.parametrize("family", ["qwen3", "t5"])
def test_encoders_of_other_families_open_whole(copy, family, tmp_path):
    model = copy("encoder")
    sizes = {
        "vocab_size": 31000,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
    }
    t5 = {
        "vocab_size": 31000,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
    }
    (
        Qwen3Model(Qwen3Config(**sizes)) if family == "qwen3" else T5EncoderModel(T5Config(**t5))
    ).save_pretrained(model)
    first = registry.open_model(str(model)).encode(TEXTS)
    assert (
        abs(kerf.load(candidate_of(model, tmp_path / "candidate")).encode(TEXTS) - first).max()
        < 0.1 * abs(first).max()
    )
    assert "missing" in refusal(changed(model, lambda w: dict(list(w.items())[:-1])))


def test_how_a_model_is_built_is_told_to_its_candidate(copy, tmp_path):
    model = copy("encoder")
    told = json.loads((model / "sentence_bert_config.json").read_text())
    (model / "sentence_bert_config.json").write_text(
        json.dumps(
            {**told, "model_args": {"add_pooling_layer": False, "attn_implementation": "eager"}}
        )
    )
    changed(
        model, lambda w: {key: value for key, value in w.items() if not key.startswith("pooler")}
    )
    after = registry.network(kerf.load(candidate_of(model, tmp_path / "candidate")))
    assert after.pooler is None and after.config._attn_implementation == "eager"


ADAPTERS = {
    "": ["adapter_config.json"],
    "weights alone": ["adapter_model.safetensors"],
    "pickled": ["adapter_model.bin"],
    "own name": ["lora.safetensors"],
    "both": ["adapter_config.json", "adapter_model.safetensors"],
}


@pytest.mark.parametrize("family", [*FAMILIES, "headed"])
@pytest.mark.parametrize("files", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("alone", [False, True], ids=["beside weights", "alone"])
def test_an_adapter_is_refused_by_name(copy, family, files, alone):
    model = copy(family)
    for name in files:
        folder = model / ("3_Dense" if family == "headed" else "")
        if name.endswith(".safetensors"):
            save_file({"base_model.model.layer.lora_A.weight": torch.ones(4, 64)}, folder / name)
        else:
            (folder / name).write_text(
                json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"})
            )
    if alone and files != ["lora.safetensors"]:
        (model / "model.safetensors").unlink()
        (model / "config.json").unlink()
    message = refusal(model)
    assert f"{files[0]} is one" in message and "merge_and_unload" in message


def test_so_is_one_beside_a_candidate(plain, tmp_path):
    folder = candidate_of(plain["causal"], tmp_path / "candidate")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapter_config.json is one"):
        kerf.load(folder)


def test_a_hub_snapshot_of_links_travels_as_files(copy, tmp_path):
    model, snapshot = write(copy("causal"), SMALL), tmp_path / "snapshots" / "0"
    for path in [path for path in model.rglob("*") if path.is_file()]:
        (snapshot / path.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(path, snapshot / path.relative_to(model))
    manifest.copy_small_files(snapshot, tmp_path / "to")
    there = [path for path in (tmp_path / "to").rglob("*") if path.is_file()]
    assert len(there) >= len(SMALL) and not [path for path in there if path.is_symlink()]
