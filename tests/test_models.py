"""Models: what opens, and what is refused before anything of it runs."""

import json
import shutil
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from kerf import evaluate
from kerf.core.errors import InputError
from kerf.evaluate.protocol import FamilyEvaluation
from kerf.models import families, registry
from kerf.models.families import FAMILIES, Family, encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
POOLING = {
    "word_embedding_dimension": 32,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_cls_token": False,
}


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """What these tests make of their models stays out of the clone's data."""
    monkeypatch.setenv("KERF_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A sentence-transformers directory with a random BERT of two layers."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertModel(
        BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **size)
    ).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    for name, value in {
        "modules.json": MODULES,
        "1_Pooling/config.json": POOLING,
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"},
    }.items():
        (folder / name).write_text(json.dumps(value))
    return folder


@pytest.fixture
def mine(tiny, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(tiny, tmp_path / "mine")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(function, model):
    """The message of the refusal, which must be one line that names the model."""
    with pytest.raises(InputError) as caught:
        function(str(model))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"model = {str(model)!r}")
    return str(caught.value)


def test_a_directory_is_described(tiny):
    found = registry.describe(str(tiny))
    weights = load_file(tiny / "model.safetensors")
    assert (found["id"], found["kind"]) == (str(tiny), "encoder")
    assert found["parameters"] == sum(weight.numel() for weight in weights.values())
    assert found["bytes"] == (tiny / "model.safetensors").stat().st_size
    assert found["bytes"] + found["other_bytes"] == sum(
        p.stat().st_size for p in tiny.rglob("*") if p.is_file()
    )
    matrices = {
        name.removesuffix(".weight"): list(w.shape) for name, w in weights.items() if w.ndim == 2
    }
    linear = {name: shape for name, shape in matrices.items() if "embeddings" not in name}
    assert found["linears"] == linear and len(linear) == 13
    assert found["embeddings"] == {"embeddings.word_embeddings": [len(WORDS), 32]}


def test_a_directory_opens_and_encodes_the_mean_of_its_tokens(tiny):
    opened = registry.open_model(str(tiny))
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.no_grad():
        expected = BertModel.from_pretrained(tiny).eval()(ids).last_hidden_state.mean(1)[0]
    torch.testing.assert_close(torch.tensor(opened.encode("a b c")), expected, rtol=1e-4, atol=1e-5)


def test_batches_go_from_short_to_long_and_are_cut_at_the_longest_allowed(tiny):
    texts = ["a b c d e f g h i j", "a", "a b c", "b"]
    batches = encoder.tokenized(registry.open_model(str(tiny)), texts, 2, 6)
    assert [b["attention_mask"].sum(1).tolist() for b in batches] == [[3, 3], [5, 6]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_provides_what_the_protocol_names(family):
    names = {*Family.__annotations__, *(name for name in vars(Family) if name[0] != "_")}
    assert len(names) == 23
    assert [name for name in sorted(names) if not hasattr(FAMILIES[family], name)] == []
    for name in names - {*Family.__annotations__}:
        assert callable(getattr(FAMILIES[family], name))


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("minilmm", "did you mean minilm"),
        ("bert", "minilm"),
        ("a/b/c", "a hub id"),
        ("../no such folder/", "a directory"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(name, accepted):
    assert accepted in refusal(registry.resolve, name)


def test_a_hub_that_is_offline_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(registry.resolve, "somebody/something")
    assert "the hub could not provide it" in message and "a local directory works" in message


@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nto host"), TimeoutError(), OSError("x" * 5000)]
)
def test_whatever_the_hub_raises_is_one_clear_line(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert len(refusal(registry.resolve, "somebody/something")) < 400


def test_of_a_hub_model_pickles_are_never_asked_for(monkeypatch, tiny):
    asked = {}

    def download(hub_id, **options):
        asked.update(options, hub_id=hub_id)
        return str(tiny)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert registry.resolve("somebody/something") == tiny
    assert asked["hub_id"] == "somebody/something"
    unsafe = ["pytorch_model.bin", "model.pt", "model.pkl", "modeling_mine.py"]
    assert not [
        name for name in unsafe for pattern in asked["allow_patterns"] if fnmatch(name, pattern)
    ]


def test_a_directory_without_a_model_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("nothing")
    assert "this one is no model" in refusal(registry.resolve, tmp_path / "notes")


def test_a_directory_without_weights_is_refused(mine):
    (mine / "model.safetensors").unlink()
    assert "no weights" in refusal(registry.resolve, mine)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_a_directory_with_pickles_alone_is_refused_by_their_name(mine, name):
    (mine / "model.safetensors").rename(mine / name)
    assert f"only pickles ({name})" in refusal(registry.resolve, mine)


def test_a_module_with_pickles_alone_is_refused(mine):
    (mine / "2_Dense").mkdir()
    (mine / "2_Dense" / "pytorch_model.bin").write_bytes(b"pickle")
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (mine / "modules.json").write_text(json.dumps([*MODULES, dense]))
    assert "2_Dense has only pickles" in refusal(registry.resolve, mine)


def test_code_that_a_config_brings_is_refused_where_the_library_does_not_know_the_model(mine):
    edit(mine / "config.json", auto_map={"AutoModel": "modeling_mine.Mine"}, model_type="mine")
    assert "would run modeling_mine.Mine" in refusal(registry.resolve, mine)


@pytest.mark.parametrize("foreign", ["mine.Evil", "os.system", "sentence_transformers_mine.Evil"])
def test_a_foreign_class_among_the_modules_is_refused(mine, foreign):
    (mine / "modules.json").write_text(json.dumps([*MODULES, {**MODULES[1], "type": foreign}]))
    assert f"would run {foreign}" in refusal(registry.resolve, mine)


def test_a_causal_language_model_is_refused_where_only_encoders_are_known(mine):
    edit(mine / "config.json", architectures=["LlamaForCausalLM"])
    (mine / "modules.json").unlink()
    message = refusal(lambda model: registry.check_family(model, "the comparison", "encoder"), mine)
    assert "an encoder; the comparison does not know causal language models yet" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "3"),
        ("config.json", '{"auto_map": ["mine.Mine"]}'),
        ("config.json", '{"architectures": [null]}'),
        ("modules.json", "{"),
        ("modules.json", "[{}]"),
        ("modules.json", "[1]"),
        ("modules.json", '[{"type": null}]'),
    ],
)
def test_a_malformed_config_is_refused(mine, name, content):
    (mine / name).write_text(content)
    refusal(registry.resolve, mine)


def test_an_auto_map_of_null_is_no_code(mine):
    edit(mine / "config.json", auto_map=None)
    assert registry.resolve(str(mine)) == mine


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["encoder.layer.1.output.dense.weight", "embeddings.LayerNorm.bias"]
)
def test_weights_that_are_not_finite_are_refused_by_name(mine, name, wrong):
    weights = load_file(mine / "model.safetensors")
    weights[name].view(-1)[3] = wrong
    save_file(weights, mine / "model.safetensors", metadata={"format": "pt"})
    message = refusal(registry.describe, mine)
    assert "finite weights" in message and name in message


def test_truncated_weights_are_refused(mine):
    whole = (mine / "model.safetensors").read_bytes()
    (mine / "model.safetensors").write_bytes(whole[:-100])
    assert "model.safetensors does not open" in refusal(registry.open_model, mine)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_implements_the_protocol_of_evaluation(name):
    assert isinstance(evaluate.of_family(name), FamilyEvaluation)
