"""Rerankers: opened, calibrated, cut, run on real kernels, measured, and trained."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from support.small import with_biases, write_model, write_reranker

import kerf
from kerf import evaluate, pipeline
from kerf.config import Calibration, Evaluation
from kerf.core import cache
from kerf.core.errors import InputError
from kerf.data import corpora, datasets, overlap
from kerf.evaluate import cross_encoder as measured
from kerf.evaluate import fidelity, ranking
from kerf.models import architecture, families, manifest, registry
from kerf.models.families import cross_encoder
from kerf.training import train_cross_encoder

SPEC = Calibration(samples=16, max_length=64)
PAIRS = [
    ("a plan", "The government announced a new plan to reduce emissions by 2030."),
    ("a cat", "A cat sat."),
    ("", "x"),
    ("only a query", ""),
    ("words " * 400, "of a passage " * 300),
    ("short", "y " * 900),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(with_biases(write_reranker(tmp_path_factory.mktemp("model") / "m")))


def test_a_cross_encoder_is_a_kind_of_its_own(model):
    found, opened = registry.describe(model), registry.open_model(model)
    assert (
        found["kind"] == "reranker"
        and isinstance(opened, CrossEncoder)
        and families.of_opened(opened) is cross_encoder
    )
    assert (
        len(found["linears"]) == 13 and "classifier" not in found["linears"]
    )  # 6 of each block and the pooler; the score's own row stays float
    assert np.array_equal(opened.predict(PAIRS), CrossEncoder(model).predict(PAIRS))


def test_more_than_one_score_is_refused(model, tmp_path):
    CrossEncoder(
        model, num_labels=3, model_kwargs={"ignore_mismatched_sizes": True}
    ).save_pretrained(str(tmp_path / "three"))
    with pytest.raises(
        InputError, match="model = .*: a cross-encoder with one score; this one gives 3"
    ):
        registry.open_model(str(tmp_path / "three"))


def test_every_second_query_stands_beside_its_own_passage():
    rows = corpora.query_passage_pairs("news", "calibration")
    own = {(query, passage) for query, passage, _ in rows}
    spec = Calibration(texts="news", samples=200)
    sample, rest = cross_encoder._drawn(spec)
    drawn = sample + rest
    assert len(sample) == 200 and len(drawn) == len(rows) >= len(own)
    assert {query for query, _ in drawn} == {query for query, _ in own}
    assert {*drawn[::2]} <= own and sum(pair in own for pair in drawn[1::2]) <= 2
    held = cross_encoder._held_back(spec)
    assert not {*sample} & {*held} and len(held) == cross_encoder.HELD_BACK
    assert sample != cross_encoder._drawn(Calibration(texts="news", samples=200, seed=1))[0]


def test_pairs_of_several_sources_have_equal_shares_and_their_own_passages():
    sample, _ = cross_encoder._drawn(Calibration(samples=41))
    shares = {"questions": sample[:21], "news": sample[21:]}
    for name, pairs in shares.items():
        rows = corpora.query_passage_pairs(name, "calibration")
        assert {query for query, _ in pairs} <= {query for query, _, _ in rows}
        assert {*pairs[::2]} <= {(query, passage) for query, passage, _ in rows}


@pytest.mark.parametrize(
    ("texts", "said"), [("news", "$"), (("news", "wiki"), ", for each of 2 sources$")]
)
def test_more_pairs_than_there_are_are_refused(texts, said):
    refused = rf"^calibration.samples = 1000000: 1 to \d+, the pairs that news has for it{said}"
    with pytest.raises(InputError, match=refused):
        cross_encoder._drawn(Calibration(texts=texts, samples=10**6))


def test_a_stored_candidate_opens_as_a_cross_encoder(model):
    folder = pipeline.build(model, [{"quantize": {"method": "gptq", "bits": 8}}], SPEC)
    opened, base = kerf.load(folder), registry.open_model(model)
    assert isinstance(opened, CrossEncoder) and manifest.verify(folder)["kind"] == "reranker"
    assert torch.equal(opened.model.classifier.weight, base.model.classifier.weight)
    scores = [each.predict(PAIRS) for each in (base, opened)]
    assert np.abs(scores[0] - scores[1]).max() < 0.3 * scores[0].std() and not np.array_equal(
        *scores
    )


@pytest.mark.parametrize(
    "step",
    [
        {"method": "static"},
        {"method": "weight_only"},
        {"method": "weight_only", "bits": 4, "group_size": 32},
        {"method": "dynamic"},
        {"method": "static", "backend": "onnxruntime"},
        {"method": "weight_only", "backend": "onnxruntime"},
    ],
    ids=str,
)
def test_the_library_computes_what_was_calibrated(model, step, monkeypatch):
    from kerf.backends import int8
    from kerf.backends import step as backend_stage

    kept, whole = {}, backend_stage._quantized

    def cut(context, opened):
        found = whole(context, opened)
        kept["cut"] = (
            copy.deepcopy(opened),
            *found,
        )  # torch's own kernels are put into the model itself
        return found

    monkeypatch.setattr(backend_stage, "_quantized", cut)
    monkeypatch.setenv("KERF_FRESH", "9999")
    folder = pipeline.build(model, [{"quantize": step}], SPEC)
    opened, integers, packed = kept["cut"]
    for name, value in packed.items():
        registry.network(opened).get_submodule(name).weight.data = value.dequantize()
    with int8.emulated(architecture.linears(registry.network(opened)), integers):
        wanted = opened.predict(PAIRS)
    found = kerf.load(folder).predict(PAIRS)
    assert np.abs(found - wanted).max() < 0.05 * wanted.std()
    assert cache.meta(folder)["result"]["bytes_on_disk"] < 0.35 * registry.describe(model)["bytes"]


def test_a_served_reranker_answers_as_a_cross_encoder(model):
    opened, base = (
        kerf.load(
            pipeline.build(model, [{"quantize": {"method": "weight_only", "embeddings": 32}}], SPEC)
        ),
        registry.open_model(model),
    )
    many, slack = PAIRS * 5, 0.1 * float(base.predict(PAIRS).std())
    found = opened.predict(many, batch_size=4, show_progress_bar=False, convert_to_numpy=True)
    assert (
        found.shape == (30,)
        and found.dtype == np.float32
        and opened.max_seq_length == base.max_seq_length
    )
    assert np.abs(found - base.predict(many)).max() < slack
    assert opened.predict(PAIRS[0]).shape == base.predict(PAIRS[0]).shape == ()
    assert opened.predict([list(pair) for pair in PAIRS]).shape == (6,) and opened.predict(
        []
    ).shape == (0,)
    documents = [passage for _, passage in PAIRS]
    ranked = [
        each.rank(
            "a plan",
            documents,
            top_k=3,
            return_documents=True,
            batch_size=2,
            show_progress_bar=False,
        )
        for each in (opened, base)
    ]
    assert [row.keys() for row in ranked[0]] == [row.keys() for row in ranked[1]] and len(
        ranked[0]
    ) == 3
    assert all(row["text"] == documents[row["corpus_id"]] for row in ranked[0])
    assert [row["score"] for row in ranked[0]] == sorted(
        (row["score"] for row in ranked[0]), reverse=True
    )
    assert ranked[0][0]["score"] == pytest.approx(ranked[1][0]["score"], abs=slack)
    for work, error, message in (
        (
            lambda: opened.predict(["a", "b", "c"]),
            TypeError,
            "inputs: pairs of a query and a passage, not 'a'",
        ),
        (lambda: opened.predict([("a", 3)]), TypeError, "inputs: texts, not int"),
        (
            lambda: opened.predict(PAIRS, batch_size=0),
            ValueError,
            "batch_size = 0: a whole number from 1",
        ),
        (
            lambda: opened.predict(PAIRS, convert_to_numpy=False),
            ValueError,
            "convert_to_numpy = False: true",
        ),
        (lambda: opened.predict(PAIRS, apply_softmax=True), TypeError, "apply_softmax"),
    ):
        with pytest.raises(error, match=message):
            work()


def test_what_a_score_goes_through_last_is_part_of_the_graph(model, tmp_path):
    opened = CrossEncoder(model, activation_fn=torch.nn.Sigmoid())
    opened.save_pretrained(str(tmp_path / "sigmoid"), create_model_card=False)
    found = kerf.load(
        pipeline.build(
            str(tmp_path / "sigmoid"),
            [{"quantize": {"method": "weight_only", "embeddings": 32}}],
            SPEC,
        )
    ).predict(PAIRS)
    assert (
        np.abs(found - opened.predict(PAIRS)).max() < 0.05 and found.min() >= 0 and found.max() <= 1
    )


def test_torch_is_not_needed(model):
    folder = pipeline.build(model, [{"quantize": {"method": "static"}}], SPEC)
    code = (
        f"import sys, kerf; assert len(kerf.load({str(folder)!r}).rank('a b', ['c', 'd e'])) == 2; "
        "print(sorted({'torch', 'transformers', 'sentence_transformers', 'scipy', 'pandas'} & {*sys.modules}))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (
            [{"quantize": {}}, {"reconstruct": {}}],
            "an encoder or a causal language model; reconstruct does not know rerankers yet",
        ),
        (
            [{"quantize": {"method": "static", "min_cosine": 0.99}}],
            "an encoder; method: static with min_cosine does not know rerankers yet",
        ),
        (
            [{"quantize": {"bits": "mixed", "min_cosine": 0.9}}],
            "an encoder; bits: mixed does not know rerankers yet",
        ),
    ],
)
def test_what_rerankers_cannot_have_is_refused(model, chain, message):
    with pytest.raises(InputError, match=message):
        pipeline.build(model, chain, SPEC)


def test_metrics_are_those_of_the_right_passages_rank():
    before = np.array([[5.0, 4, 3, 2], [1, 4, 3, 2], [4, 5, 3, 2]])  # ranks 1, 4, 2
    after = np.array([[5.0, 4, 3, 2], [1, 1, 3, 2], [6, 5, 3, 2]])  # ranks 1, 3.5, 1
    rows = {row["name"]: row for row in ranking.metrics(before, after, np.arange(3))}
    assert rows["mrr"]["value"] == pytest.approx((1 + 1 / 3.5 + 1) / 3) and rows["mrr"][
        "baseline"
    ] == pytest.approx((1 + 1 / 4 + 1 / 2) / 3)
    assert rows["mrr_loss"]["value"] == pytest.approx(
        rows["mrr"]["baseline"] - rows["mrr"]["value"]
    )
    gains = [1 / np.log2(1 + rank) for rank in (1, 3.5, 1)]
    assert rows["ndcg_10"]["value"] == pytest.approx(np.mean(gains))
    assert ranking.ndcg_10(np.array([10.0, 11.0])).tolist() == pytest.approx([1 / np.log2(11), 0])
    assert rows["same_first"]["value"] == pytest.approx(1 / 3) and (
        rows["same_first"]["lost"],
        rows["same_first"]["gained"],
    ) == (0, 1)
    assert all(
        row["low"] is row["high"] is None and "too few independent documents" in row["why"]
        for row in rows.values()
    )
    assert (rows["first_right"]["value"], rows["first_right"]["baseline"]) == pytest.approx(
        (2 / 3, 1 / 3)
    )
    assert rows["top_3_kept"]["value"] == pytest.approx(
        (1 + 2 / 3 + 1) / 3
    )  # the second shortlist lost one of three, ties by place
    assert rows["order_kendall"]["value"] == pytest.approx(
        (6 + 1 + 4) / 18
    )  # of six pairs: all; three alike, two not, one tie; one not
    assert rows["score_change_rms"]["value"] == pytest.approx(np.sqrt((9 + 4) / 12))
    assert 0 < rows["score_spearman"]["value"] < 1
    assert fidelity.ranks(np.ones((1, 5)), np.ones((1, 1))).tolist() == [
        3
    ]  # who tells nothing apart is in the middle


def test_a_comparison_of_a_reranker(model):
    spec = Evaluation(retrieval=["news"], queries=30)
    everything = evaluate.family_evaluation(model).gather(model, spec)
    own = everything.sets["news"]
    stretches = corpora.query_passage_pairs("news", "evaluation")
    assert {*own.collection.queries} < {query for query, _, _ in stretches}
    assert own.passages.shape == (30, 20) and (own.passages[:, 0] == np.arange(30)).all()
    assert all(len({*row}) == 20 for row in own.passages.tolist())
    same = {
        row["name"]: row
        for row in evaluate.read(evaluate.compare(model, "", spec, noise_floor=True))[0]
    }
    assert (
        same["ndcg_10_loss"]["value"] == same["mrr_loss"]["value"] == 0
        and same["same_first"]["value"] == 1
    )
    folder = pipeline.build(model, [{"quantize": {"method": "static"}}], SPEC)
    compared = evaluate.compare(model, folder, spec)
    rows, picture = evaluate.read(compared)
    values = {row["name"]: row for row in rows}
    assert values["speedup"]["low"] <= values["speedup"]["value"] <= values["speedup"]["high"]
    assert values["score_spearman"]["value"] < 1 and "nDCG@10" in measured.conclusion(
        values, picture
    )
    assert len(measured.worst(model, compared, picture).data) == 5 and measured.draw(
        compared, picture
    )
    scores = np.array(picture["scores"]["candidate"])
    direct = kerf.load(folder).predict(list(everything.pairs))
    assert np.allclose(scores.ravel(), direct, atol=1e-3)


def test_the_first_stage_ranks_what_it_found(tmp_path):
    encoder = write_model(tmp_path / "encoder")
    collection = datasets.retrieval("wiki", 12)
    queries, passages = collection.queries, collection.passages
    found = measured.nearest_others(encoder, collection, 5)
    opened = registry.open_model(str(encoder))
    scores = (
        opened.encode(queries, normalize_embeddings=True)
        @ opened.encode(passages, normalize_embeddings=True).T
    )
    for number, row in enumerate(found):
        assert (
            number not in row
            and row.tolist() == [each for each in np.argsort(-scores[number]) if each != number][:5]
        )


def test_pairs_of_the_training_share_nothing_with_what_is_measured_on():
    assert overlap.without_overlap(
        ["a b c d e f g h i j k l m", "x y"], ["z a b c d e f g h i j k l"]
    ) == ["x y"]
    rows = [" ".join(row) for row in train_cross_encoder.training_pairs()]
    measured_on = corpora.evaluation_documents("wiki")
    overlap.check_overlap(
        rows[:400],
        [
            *measured_on,
            *(row[1] for row in corpora.query_passage_pairs("wiki", "evaluation")[:300]),
        ],
    )


def test_training_learns_is_seeded_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KERF_DATA", str(tmp_path / "data"))
    encoder = write_model(tmp_path / "encoder")
    rows = [
        (f"the {word} query", f"this passage is about {word}")
        for word in ("tax", "rain", "music", "war", "river", "bread", "gold", "law")
    ]
    monkeypatch.setattr(train_cross_encoder, "training_pairs", lambda: rows * 30)
    monkeypatch.setattr(train_cross_encoder.corpora, "digest", str)
    spec = train_cross_encoder.Training(steps=60, queries=4, learning_rate=1.5e-3)
    folder = train_cross_encoder.trained(encoder, spec)
    losses = cache.meta(folder)["result"]["losses"]
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.85 * np.log(4) < np.mean(losses[:3])
    assert (
        registry.describe(str(folder))["kind"] == "reranker"
        and (folder / "LICENSE").is_file() == (encoder / "LICENSE").is_file()
    )
    monkeypatch.setattr(cache, "machine", lambda: {"threads": 99})
    assert (
        train_cross_encoder.trained(encoder, spec) == folder
    )  # one and the same model, however many threads measure it
    again = tmp_path / "again"
    again.mkdir()
    train_cross_encoder._make(again, encoder, spec)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    for wrong, accepted in (
        (61, "1 to 60: 240 pairs, 4 a step"),
        (1, "4 to 240: 240 pairs, 1 a step"),
    ):
        with pytest.raises(InputError, match=f"steps = {wrong}: {accepted}"):
            train_cross_encoder.trained(
                encoder, train_cross_encoder.Training(steps=wrong, queries=4 if wrong > 1 else 1)
            )


def test_negatives_are_other_passages_mostly_random_at_first(tmp_path):
    encoder = write_model(tmp_path / "encoder")
    rows = [(f"query {number}", f"passage {number}") for number in range(40)]
    spec = train_cross_encoder.Training(steps=10, queries=4, others=3, easy=0.5)
    examples = train_cross_encoder._examples(encoder, rows, spec).to_list()
    assert [(row["query"], row["passages"][0]) for row in examples] == rows
    texts, own = map(list, zip(*rows, strict=True)), [{number: 1.0} for number in range(40)]
    collection = datasets.Retrieval("c", "own", *texts, own, np.arange(40))
    nearest = measured.nearest_others(encoder, collection, 20)
    hard = []
    for row, near in zip(examples, nearest, strict=True):
        own, *negatives = row["passages"]
        assert own not in negatives and len(set(negatives)) == 3
        assert np.argmax(row["labels"]) == 0 and len(row["labels"]) == 4
        hard.append([negative in {rows[index][1] for index in near} for negative in negatives])
    assert all(first for first, *_ in hard) and np.all(hard[20:]) and not np.all(hard[:20])


def test_the_list_of_models_says_where_the_reranker_comes_from():
    said = subprocess.run(
        [sys.executable, "-m", "kerf", "list", "models", "--json"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    about = {row["name"]: row["about"] for row in json.loads(said)}
    assert "Kerf trained itself" in about["reranker"] and "inverse-cloze" in about["reranker"]


def test_a_shortlist_holds_no_other_passage_that_answers_the_query(tmp_path, monkeypatch):
    encoder = str(write_model(tmp_path / "encoder"))
    monkeypatch.setattr(measured, "FIRST_STAGE", encoder)
    judged = {number: 1.0 + (number == 3) for number in range(10)}
    texts = [f"passage {number} of some words" for number in range(25)]
    collection = datasets.Retrieval(
        "c", "own", ["a query", "another one"], texts, [judged, {20: 1.0}], np.arange(2)
    )
    own = measured._shortlists(collection).passages
    assert own.shape == (2, 16) and own[:, 0].tolist() == [3, 20]
    assert not {*own[0, 1:].tolist()} & {*judged} and 20 not in own[1, 1:]
    other = {**judged, 3: 1.0, 4: 2.0}
    changed = measured._shortlists(replace(collection, relevant=[other, {20: 1.0}])).passages
    assert changed[0, 0] == 4
