"""One tokenizer for a model and its candidates, texts without any token, and lengths that a model can read."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from support.small import (
    SIZES,
    byte_tokenizer,
    write_causal,
    write_family,
    write_model,
    write_reranker,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

import kerf
from kerf import pipeline
from kerf.backends import tokens
from kerf.config import Calibration, Evaluation
from kerf.core.errors import InputError
from kerf.data import corpora
from kerf.evaluate import causal as measured_causal
from kerf.evaluate import encoder_inputs
from kerf.models import registry
from kerf.models.families import causal, encoder, lengths

SPEC = Calibration(samples=16, max_length=64)
TEXTS = [
    "The Capital of France is Paris.",
    "Angela Merkel visited Berlin",
    "a café in the street",
    "[MASK] and [SEP] in it",
    "你好，世界",
    "x " * 600,
]
KERNELS = [{"method": "weight_only"}, {"method": "dynamic"}]


def changed(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def cased(folder):
    return changed(folder, "tokenizer_config.json", do_lower_case=False)


def shorter(folder):
    return changed(folder, "sentence_bert_config.json", max_seq_length=40)


def longer(folder):  # than its 512 positions
    return changed(
        changed(folder, "sentence_bert_config.json", max_seq_length=2048),
        "tokenizer_config.json",
        model_max_length=4096,
    )


def accents(folder):
    return changed(folder, "tokenizer_config.json", strip_accents=False)


def left(folder):
    return changed(folder, "tokenizer_config.json", truncation_side="left", padding_side="left")


def lower(folder):
    return changed(cased(folder), "sentence_bert_config.json", do_lower_case=True)


def literal(folder):
    return changed(folder, "tokenizer_config.json", split_special_tokens=True)


def own_limits(
    folder,
):  # what tokenizer.json itself says of cutting and padding is not obeyed by transformers
    more = {
        "truncation": {
            "direction": "Right",
            "max_length": 7,
            "strategy": "LongestFirst",
            "stride": 0,
        }
    }
    return changed(folder, "tokenizer.json", **more)


def without_fast(folder):
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.mark.parametrize(
    "change",
    [cased, shorter, longer, accents, left, lower, literal, own_limits, without_fast],
    ids=lambda each: each.__name__,
)
def test_kernels_read_texts_as_the_model_does(tmp_path, change):
    folder = change(write_model(tmp_path / "model"))
    opened = registry.open_model(str(folder))
    wanted = opened.encode(TEXTS, batch_size=1, normalize_embeddings=True)
    for step in KERNELS[:1] if change is not cased else KERNELS:
        made = pipeline.build(str(folder), [{"quantize": step}], SPEC)
        assert (kerf.load(made).encode(TEXTS, normalize_embeddings=True) * wanted).sum(
            1
        ).min() > 0.97
        assert kerf.load(made).max_seq_length == min(opened.max_seq_length, 512)


def test_kernels_read_pairs_as_the_model_does(tmp_path):
    folder = cased(write_reranker(tmp_path / "reranker"))
    pairs = [(a, b) for a in TEXTS[:4] for b in TEXTS]
    wanted = registry.open_model(str(folder)).predict(pairs, batch_size=1)
    found = kerf.load(pipeline.build(str(folder), [{"quantize": KERNELS[0]}], SPEC)).predict(pairs)
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def test_other_tokens_than_the_models_are_refused(tmp_path, monkeypatch):
    model = write_model(tmp_path / "model")
    other = cased(write_model(tmp_path / "other"))
    told = tokens.write(registry.open_model(str(model)), model)
    with pytest.raises(
        InputError, match="a model whose texts are tokenized by its tokenizer alone; 'The Capital"
    ):
        tokens.check(registry.open_model(str(other)), tokens.read(model, told))


def test_a_candidate_of_before_its_limits_were_kept_is_cut_as_it_was_then(tmp_path):
    model = write_model(tmp_path / "model")
    told = tokens.settings_of(model, {})
    assert (
        told["max_length"] == registry.open_model(str(model)).max_seq_length
        and told["cut"] == "right"
    )
    assert len(tokens.read(model, told).encode("word " * 5000).ids) == told["max_length"]


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / tokens.FILE).write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json that tokenizers opens"):
        tokens.read(tmp_path, tokens.settings_of(tmp_path, {}))


def known_letters(folder):
    """A tokenizer of what stands in English news, with no token around a text: it drops every other character."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = Whitespace()
    made.train_from_iterator(
        corpora.documents("news", "calibration"),
        BpeTrainer(vocab_size=400, special_tokens=["<pad>"], show_progress=False),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", model_max_length=64
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A text file of news of which some lines are in a script that the tokenizer does not know."""
    path = tmp_path_factory.mktemp("texts") / "own.txt"
    lines = corpora.documents("news", "calibration") + corpora.documents("news", "evaluation")
    digits = "零一二三四五六七八九"
    unknown = [f"你好世界。{tens}{ones}" for tens in digits for ones in digits]
    path.write_text("\n".join([*lines, *unknown]), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def dropping(tmp_path_factory):
    """An encoder whose tokenizer drops unknown characters."""
    folder = tmp_path_factory.mktemp("dropping")
    raw = folder / "raw"
    known_letters(raw)
    BertModel(
        BertConfig(**{**SIZES, "vocab_size": 400, "max_position_embeddings": 64})
    ).save_pretrained(raw)
    SentenceTransformer(modules=[Transformer(str(raw)), Pooling(64)], device="cpu").save_pretrained(
        str(folder / "model"), create_model_card=False
    )
    return folder / "model"


def test_documents_without_tokens_are_left_out_of_a_stream(tmp_path, mixed):
    folder = write_causal(tmp_path / "causal")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    known_letters(folder)
    model = str(folder)
    tokens_of, owners = causal.stream(causal.tokenizer(folder), ["你好", "The", "你"])
    assert (
        tokens_of.dtype == np.int64
        and owners.tolist() == [1]
        and causal.stream(causal.tokenizer(folder), ["你"])[0].shape == (0,)
    )
    made = pipeline.build(
        model,
        [{"quantize": {"method": "gptq", "bits": 4}}],
        Calibration(texts=mixed, samples=4, max_length=32),
    )
    assert "without any token left out" in causal.describe_sample(
        folder, Calibration(texts=mixed, samples=4, max_length=32)
    )
    everything = measured_causal.gather(
        model, Evaluation(texts=mixed, num_chunks=4, seq_len=32, passages=4, tasks=[])
    )
    assert (
        everything.chunks.dtype == np.int64
        and everything.left_out > 0
        and "left out" in measured_causal.about(everything)
    )
    with pytest.raises(InputError, match="prompt = '你好'"):
        causal.output(registry.load(made), causal.tokenizer(folder), ("你好",))


def test_texts_without_tokens_are_left_out_of_what_an_encoder_reads(dropping, mixed):
    opened, spec = (
        registry.open_model(str(dropping)),
        Calibration(texts=mixed, samples=16, max_length=32),
    )
    batches = encoder.tokenized(opened, ["你好", "The government", "世界"], 2, 32)
    assert len(batches) == 1 and batches[0]["input_ids"].shape[0] == 1
    assert len(encoder.token_ids(opened, ["你好", "The government"], 32)) == 1
    made = pipeline.build(str(dropping), [{"quantize": {"method": "weight_only"}}], spec)
    assert np.isfinite(kerf.load(made).encode(["你好", "The government", ""])).all()
    assert np.array_equal(kerf.load(made).encode(["你好"]), np.zeros((1, 64)))
    with pytest.raises(
        InputError,
        match="calibration.texts = '你好': text that the model's tokenizer knows; none of 2",
    ):
        encoder.tokenized(opened, ["你好", "世界"], 2, 32)
    with pytest.raises(InputError, match="text = '你好': at least one token"):
        encoder.output(opened, opened.tokenizer, ("The", "你好"))


def test_columns_lose_the_rows_without_tokens(dropping):
    tokenizer = causal.tokenizer(dropping)
    found = lengths.rows_with_tokens(
        tokenizer,
        "evaluation.passages",
        ["The", "你", "a", "said"],
        ["government", "said", "世", "a"],
        [1, 2, 3, 4],
    )
    assert found == [["The", "said"], ["government", "a"], [1, 4]]
    with pytest.raises(
        InputError,
        match="evaluation.passages = 2: text that the model's tokenizer knows; 1 of 2 have any token",
    ):
        lengths.rows_with_tokens(tokenizer, "evaluation.passages", ["The", "你"], [1, 2])
    assert encoder_inputs._known_pairs(
        tokenizer, ["你", "a", "The"], [0, 1], [1, 2], [0.5, 1.0]
    ) == (["a", "The"], [0], [1], [1.0])


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("bert", {"max_position_embeddings": 64}, 64),
        ("roberta", {"max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ("xlm-roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ("mpnet", {"max_position_embeddings": 514}, 512),
        ("gpt2", {"n_positions": 256}, 256),
        ("llama", {"max_position_embeddings": 2048}, 2048),
        ("modernbert", {"max_position_embeddings": 1024}, 1024),
        ("bloom", {}, None),
        ("t5", {}, None),
        ("opt", {"max_position_embeddings": 128}, 128),
        ("falcon", {"alibi": True}, None),
    ],
)
def test_positions_of_families(family, options, expected):
    assert lengths.positions(AutoConfig.for_model(family, **options)) == expected


@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "MPNet"])
def test_texts_end_where_the_positions_do(tmp_path, family):
    folder = write_family(tmp_path / "model", family, model_max_length=10**6)
    opened = registry.open_model(str(folder))
    assert opened.max_seq_length == 300 and np.isfinite(opened.encode(["word " * 2000])).all()
    with pytest.raises(
        InputError, match="calibration.max_length = 400: at most 300, the positions of this model"
    ):
        encoder.batches(opened, Calibration(samples=16, max_length=400))
    assert opened.tokenizer("word " * 2000, truncation=True)["input_ids"].__len__() == 300
    changed = shorter(folder)
    assert (
        max(
            len(ids)
            for ids in encoder.token_ids(
                registry.open_model(str(changed)), ["word " * 500] * 2, 128
            )
        )
        == 40
    )


def test_a_language_model_of_few_positions_is_measured_to_its_end(tmp_path):
    folder = tmp_path / "opt"
    torch.manual_seed(0)
    OPTForCausalLM(
        OPTConfig(
            vocab_size=400,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=48,
        )
    ).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    everything = measured_causal.gather(
        str(folder), Evaluation(texts="news", num_chunks=4, seq_len=48, passages=20, tasks=[])
    )
    assert all(len(ids) <= 48 for ids, _ in everything.passages)
    with pytest.raises(
        InputError, match="evaluation.seq_len = 512: at most 48, the positions of this model"
    ):
        measured_causal.gather(
            str(folder), Evaluation(texts="news", num_chunks=4, passages=4, tasks=[])
        )
    opened = registry.open_model(str(folder))
    measured_causal.run_inference(
        opened, {**measured_causal.inference_request(everything, False, True), "seed": 0}, tmp_path
    )
    assert load_file(tmp_path / "answers.safetensors")["continued"].shape == (4, 24)
    with pytest.raises(InputError, match="prompt = 60: at most 48"):
        causal.output(
            opened, lambda *_, **__: {"input_ids": torch.ones(1, 60, dtype=torch.long)}, ("x",)
        )


@pytest.mark.parametrize("write", [write_model, write_causal, write_reranker])
def test_a_tokenizer_that_fails_on_what_it_does_not_know_is_refused(write, tmp_path):
    folder = write(tmp_path / "model")
    held = json.loads((folder / "tokenizer.json").read_text())
    held |= {
        "model": {"type": "WordLevel", "vocab": {"the": 0, "of": 1}, "unk_token": "[UNK]"},
        "added_tokens": [],
        "post_processor": None,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(held))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    with pytest.raises(
        InputError, match="a tokenizer that reads any text; on .* it fails"
    ) as refusal:
        registry.describe(str(folder))
    assert "\n" not in str(refusal.value)
