"""What a model's own files say about it: its family, its prompts and pooling, tables without a network, and rerankers of two tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding
from support import small

import kerf
from kerf import evaluate
from kerf.backends import serve, tokens
from kerf.calibration.heldout import embed
from kerf.config import Calibration, Evaluation
from kerf.core.cache import meta
from kerf.core.errors import InputError
from kerf.models import families, manifest, registry
from kerf.models.coverage import coverage
from kerf.models.families import cross_encoder, encoder
from kerf.workbench.report.text_format import conventions as conventions_line
from kerf.workbench.run import experiment

TEXTS = ["A cat sat on the mat.", "Someone makes music on a stage tonight, for nobody."]
PROMPTS = {"query": "query: ", "passage": "passage: ", "sts": "similar: "}
FEW = Calibration(samples=32, max_length=64)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """One model of each kind: `full` has prompts, the last token's state, a Dense layer and a truncated embedding."""
    folder = tmp_path_factory.mktemp("families")
    last, normalize = small.write_family(folder / "last", "Qwen3"), Normalize()
    parts = SentenceTransformer(str(last), device="cpu")
    torch.manual_seed(0)
    modules = [parts[0], parts[1], Dense(64, 48), normalize]
    options = {"prompts": PROMPTS, "default_prompt_name": "sts", "similarity_fn_name": "dot"}
    full = SentenceTransformer(modules=modules, truncate_dim=32, device="cpu", **options)
    full.save_pretrained(str(folder / "full"), create_model_card=False)
    table = StaticEmbedding(small.byte_tokenizer(), embedding_dim=32)
    static = SentenceTransformer(modules=[table, normalize], device="cpu")
    static.save_pretrained(str(folder / "static"), create_model_card=False)
    small.write_yes_no(folder / "yes-no")
    return folder


@pytest.fixture(scope="module")
def full(places):
    return kerf.open_model(str(places / "full"))


def refusal(function, *arguments, **options):
    """The message of the refusal, which is one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Prompts and what stands behind the network


def test_queries_and_passages_have_their_own_prompts_and_never_the_default_one(full):
    plain = {text: full.encode(text, prompt="") for text in TEXTS}
    for call, prompt in (
        (encoder.encode_queries, "query: "),
        (encoder.encode_documents, "passage: "),
        (encoder.encode_texts, "similar: "),
    ):
        expected = full.encode([prompt + text for text in TEXTS], prompt="")
        np.testing.assert_allclose(call(full, TEXTS), expected, atol=1e-5)
        assert not np.allclose(call(full, TEXTS)[0], plain[TEXTS[0]], atol=1e-3)


def test_a_default_prompt_alone_is_not_put_before_passages(places, tmp_path):
    opened = SentenceTransformer(str(places / "full"), device="cpu")
    opened.prompts = {"sts": "similar: "}
    opened.save_pretrained(str(tmp_path / "default"), create_model_card=False)
    opened = kerf.open_model(str(tmp_path / "default"))
    expected = opened.encode(TEXTS, prompt="")
    np.testing.assert_allclose(encoder.encode_documents(opened, TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_queries(opened, TEXTS), expected, atol=1e-5)


def test_calibration_reads_a_share_of_its_sentences_behind_each_prompt(full):
    texts = [
        full.tokenizer.decode(row[mask.bool()], skip_special_tokens=True)
        for batch in encoder.batches(full, FEW)
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    counts = [sum(text.startswith(prompt) for text in texts) for prompt in PROMPTS.values()]
    assert counts == [12, 10, 10]  # of both sources 6, 5 and 5


def test_held_out_embeddings_are_those_that_encode_returns(full):
    batch = encoder.tokenized(full, TEXTS, 2, 512, "query: ")
    expected = full.encode(TEXTS, prompt_name="query", normalize_embeddings=True)
    np.testing.assert_allclose(embed(full, batch).numpy(), expected, atol=1e-5)


def test_conventions_and_float_modules_are_told(full):
    how = encoder.conventions(full)
    assert how["modules"] == ["Pooling", "Dense", "Normalize"] and how["pooling"] == "lasttoken"
    line = conventions_line(how)
    for part in (
        "'query: '",
        "sts by default",
        "lasttoken",
        "Dense",
        "dot",
        "32 dimensions",
        "512",
    ):
        assert part in line
    covered = coverage(full, registry.network(full), {})
    (row,) = [row for row in covered["float"] if "no method changes" in row["reason"]]
    assert row["parameters"] == 64 * 48  # its bias is a vector


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_a_real_kernel_has_the_conventions_of_its_model(places, full, method):
    served = kerf.compress(str(places / "full"), method=method, samples=32)
    assert isinstance(served, serve.Encoder) and served.get_embedding_dimension() == 32
    for call, options in (
        ("encode", {}),
        ("encode", {"prompt_name": "query"}),
        ("encode", {"prompt": "query: ", "truncate_dim": 8}),
        ("encode_query", {}),
        ("encode_document", {}),
        ("encode_document", {"prompt": ""}),
    ):
        expected = getattr(full, call)(TEXTS, **options)
        rows = getattr(served, call)(TEXTS, **options)
        assert rows.shape == expected.shape
        np.testing.assert_allclose(rows, expected, atol=0.05)
    rows = served.encode(TEXTS)
    np.testing.assert_allclose(
        served.similarity(rows, rows), full.similarity(rows, rows), atol=1e-5
    )
    with pytest.raises(ValueError, match="prompt_name = 'other'"):
        served.encode(TEXTS, prompt_name="other")


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_of_a_kernel_are_those_of_the_library(full, name):
    served = object.__new__(serve.Encoder)
    served.similarity_fn_name = name
    library = SentenceTransformer(modules=list(full), similarity_fn_name=name, device="cpu")
    a, b = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    np.testing.assert_allclose(served.similarity(a, b), library.similarity(a, b), atol=1e-5)


def test_a_pooling_without_the_prompt_is_refused_for_a_kernel(places, tmp_path):
    opened = kerf.open_model(str(places / "full"))
    opened.set_pooling_include_prompt(False)
    assert "pooling counts its prompts" in refusal(tokens.write, opened, tmp_path)


# What a user says of a model


def test_prompts_in_a_models_name_reach_calibration_candidates_and_digests(places):
    plain = str(places / "last")
    said = f"{plain}?query_prompt=query: &passage_prompt=passage: "
    opened = kerf.open_model(said)
    assert opened.prompts == {"query": "query: ", "document": "passage: "}
    folders = [registry.resolve(name) for name in (plain, said)]
    assert len({registry.weights_digest(folder) for folder in folders}) == 2
    candidate = kerf.compress(said, method="rtn", bits=8, samples=32)
    assert candidate.prompts == opened.prompts
    assert manifest.verify(candidate.artifact)["model"] == said
    expected = opened.encode(["query: a"], prompt="")
    np.testing.assert_allclose(candidate.encode_query(["a"]), expected, atol=0.05)


def test_an_experiment_names_the_conventions(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        'model: minilm\nconventions: {query_prompt: "query: "}\n'
        "candidates: {int8: [{quantize: {bits: 8}}]}\n"
    )
    read = experiment.read(str(path), ['conventions.passage_prompt="text: "'])
    assert read.model == "minilm?query_prompt=query: &passage_prompt=text: "
    assert read.origin["conventions.passage_prompt"] == "command line"
    assert read.origin["calibration.max_length"] == "model preset"
    message = refusal(experiment.read, str(path), (), "minilm?family=encoder")
    assert "beside others" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("?family=causal", "family = 'causal': encoder, which"),
        ("?family=reranker", "family = 'reranker': encoder, which"),
        ("?family=other", "family = 'other': encoder, which"),
        ("?prompt=a", "conventions.prompt = 'a': no such key"),
        ("?", "nothing stands behind"),
    ],
)
def test_an_impossible_convention_is_refused_in_one_line(places, name, message):
    assert message in refusal(registry.resolve, f"{places / 'last'}{name}")


def test_a_language_model_opens_as_whatever_the_user_says(places):
    raw = str(places / "yes-no-raw")
    assert families.name_of(Path(raw)) == "causal"
    expected = CrossEncoder(str(places / "yes-no")).predict([TEXTS])
    reranker = kerf.open_model(f"{raw}?family=reranker")
    np.testing.assert_allclose(reranker.predict([TEXTS]), expected, atol=1e-6)
    assert isinstance(kerf.open_model(f"{raw}?family=encoder"), SentenceTransformer)
    folder = registry.resolve(f"{places / 'yes-no'}?family=causal")
    assert families.name_of(folder) == "causal"
    assert "query_prompt = 'a': an encoder" in refusal(registry.resolve, f"{raw}?query_prompt=a")


@pytest.mark.parametrize(
    ("config", "modules", "saved_as", "family"),
    [
        ("BertModel", ["Transformer", "Pooling"], "", "encoder"),
        ("BertForMaskedLM", [], "", "encoder"),
        ("Qwen3ForCausalLM", [], "", "causal"),
        ("Qwen3ForCausalLM", ["Transformer", "Pooling"], "", "encoder"),
        ("Qwen3ForCausalLM", ["Transformer", "LogitScore"], "", "reranker"),
        ("Qwen3ForCausalLM", [], "CrossEncoder", "reranker"),
        ("Qwen3ForCausalLM", [], "SentenceTransformer", "encoder"),
        ("BertForSequenceClassification", [], "", "reranker"),
        ("BertForSequenceClassification", ["Transformer", "Pooling"], "", "encoder"),
        ("", ["StaticEmbedding"], "", "encoder"),
    ],
)
def test_the_family_is_read_from_configuration_and_modules(
    tmp_path, config, modules, saved_as, family
):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [config]}))
    listed = [{"type": f"sentence_transformers.models.{name}", "path": ""} for name in modules]
    if listed:
        (tmp_path / "modules.json").write_text(json.dumps(listed))
    settings = json.dumps({"model_type": saved_as} if saved_as else {})
    (tmp_path / "config_sentence_transformers.json").write_text(settings)
    assert families.name_of(tmp_path) == family
    assert family in families.possible(tmp_path) or saved_as or "Sequence" in config


# Static embeddings


def test_a_table_is_quantized_like_a_layer(places):
    model = str(places / "static")
    described = registry.describe(model)
    assert described["kind"] == "encoder" and described["linears"] == {"embedding": [400, 32]}
    weight = kerf.open_model(model)[0].embedding.weight
    errors = []
    for bits in (8, 4, 2):
        artifact = kerf.compress(model, method="rtn", bits=bits, group_size=16).artifact
        error = (kerf.load(artifact)[0].embedding.weight - weight).detach().square().sum()
        errors.append(float(error / weight.detach().square().sum()))
        (row,) = meta(artifact)["result"]["layers"]
        assert row["error"] == pytest.approx(errors[-1], rel=1e-3)
    assert 0 < errors[0] < 1e-4 < errors[1] < 0.01 < errors[2] < 0.3
    spec = Evaluation(sentences=20, passages=20)
    assert evaluate.read(evaluate.compare(model, artifact, spec))[0]


@pytest.mark.parametrize(
    "step",
    [
        {"method": "gptq"},
        {"method": "static"},
        {"method": "magnitude", "sparsity": 0.5},
        {"method": "rtn", "bits": "mixed", "min_cosine": 0.9},
    ],
)
def test_other_methods_are_refused_for_a_table(places, step):
    assert "without linear layers" in refusal(kerf.compress, str(places / "static"), **step)


@pytest.mark.parametrize(
    "named", [{}, {"model_type": "model2vec", "architectures": ["StaticModel"]}]
)
def test_a_table_of_bytes_opens_as_model2vec_wrote_it(places, tmp_path, named):
    codes = torch.randint(-127, 128, (400, 8), dtype=torch.int8)
    scales = torch.linspace(0.5, 2, 400)
    save_file({"embeddings": codes, "weights": scales}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"normalize": True, **named}))
    (tmp_path / "tokenizer.json").write_bytes((places / "static/tokenizer.json").read_bytes())
    opened = kerf.open_model(str(tmp_path))
    ids = opened.tokenizer.encode(TEXTS[0], add_special_tokens=False).ids
    mean = (codes.float() * scales[:, None])[ids].mean(0)
    np.testing.assert_allclose(opened.encode(TEXTS[0]), mean / mean.norm(), atol=1e-5)


# Rerankers of two tokens


def test_a_reranker_of_two_tokens_is_compressed_and_scores_like_its_library(places):
    model = str(places / "yes-no")
    opened, library = kerf.open_model(model), CrossEncoder(model)
    assert families.of_opened(opened) is cross_encoder
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[0])]
    batch = cross_encoder._tokenized(opened, pairs, 512)
    with torch.no_grad():
        scores = torch.cat([cross_encoder.forward(opened, part) for part in batch])[:, 0]
    ordered = sorted(pairs, key=lambda pair: len("".join(pair)))
    np.testing.assert_allclose(scores, library.predict(ordered), atol=1e-5)
    for method in ("rtn", "gptq"):
        candidate = kerf.compress(model, method=method, bits=8, samples=32)
        rows = kerf.load(candidate.artifact).predict(pairs)
        np.testing.assert_allclose(rows, library.predict(pairs), atol=0.05)


def test_a_reranker_of_two_tokens_is_refused_for_a_kernel(places):
    message = refusal(kerf.compress, str(places / "yes-no"), method="static")
    assert message.startswith("method = 'static': rtn or gptq")


# Token identity


def test_a_candidate_that_reads_other_tokens_is_refused_by_the_first_text(places):
    model = str(places / "last")
    candidate = kerf.compress(model, method="rtn", bits=8, samples=16).artifact
    card = manifest.verify(candidate)
    tokenizer = candidate / "tokenizer.json"
    whole = json.loads(tokenizer.read_text())
    del whole["post_processor"]
    kept = tokenizer.read_bytes(), (candidate / "card.json").read_bytes()
    try:
        tokenizer.write_text(json.dumps(whole | {"post_processor": None}))
        manifest.write_manifest(candidate, {k: v for k, v in card.items() if k != "files"})
        spec = Evaluation(sentences=20, passages=20)
        message = refusal(evaluate.compare, model, candidate, spec)
    finally:
        tokenizer.write_bytes(kept[0])
        (candidate / "card.json").write_bytes(kept[1])
    assert "candidate = " in message and "the token ids of the baseline; of '" in message


def test_the_first_text_with_other_tokens_is_named():
    evaluate.check_tokens("", ["a", "b"], [[1], [2]], [[1], [2]])
    message = refusal(evaluate.check_tokens, "mine", ["a", "b"], [[1], [2]], [[1], [3]])
    assert "of 'b' it reads [3], not [2]" in message
