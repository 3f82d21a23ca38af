"""Every source of text by itself: what is drawn, what is refused, and each figure against a direct computation."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from support.small import write_causal, write_model

import kerf
from kerf import evaluate, pipeline
from kerf.config import Calibration, Evaluation
from kerf.core.errors import InputError
from kerf.core.paths import root
from kerf.data import bundled, corpora, datasets, overlap
from kerf.evaluate import causal, choices, gates, likelihood, retrieval
from kerf.evaluate import stats as ks
from kerf.models.families import causal as causal_family
from kerf.workbench.run import experiment, plan

SPEC = Evaluation(
    texts=["news", "everyday"],
    sentences=30,
    retrieval=["questions", "docs"],
    queries=60,
    passages=40,
    labelled=40,
)
STEP = [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32}}]


def calibration_sentences(name):
    documents = corpora.documents(name, "calibration")
    return {sentence for document in documents for sentence in corpora.sentences(document)}


# Text


def test_a_mixed_sample_draws_equal_shares_of_its_sources():
    sample = corpora.calibration_sentences(("questions", "news", "docs"), 20, seed=3)
    shares = sample[:7], sample[7:14], sample[14:]
    for name, share in zip(("questions", "news", "docs"), shares, strict=True):
        assert {*share} <= calibration_sentences(name)
    assert shares[1] == corpora.calibration_sentences("news", 20, seed=3)[:7]
    assert Calibration().texts == ("questions", "news")


@pytest.mark.parametrize(
    "path", sorted((root() / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_a_notebook_by_itself_calibrates_on_the_same_mixture_as_a_run(path):
    cells = json.loads(path.read_text())["cells"]
    source = "".join(line for cell in cells for line in (*cell["source"], "\n"))
    for value in re.findall(r"^texts = (.*?)  #", source, re.M):
        assert tuple(json.loads(value)) == Calibration().texts


def test_what_is_held_back_of_a_mixture_comes_from_its_sources_in_turn():
    sample = corpora.calibration_sentences(("questions", "news"), 40, seed=0)
    held = corpora.held_back(("questions", "news"), 40, seed=0)
    assert not {*sample} & {*held}
    assert {*held[::2]} <= calibration_sentences("questions")
    assert {*held[1::2]} <= calibration_sentences("news")


@pytest.mark.parametrize("name", ["wiki", "questions", "bbc", "news"])
def test_evaluation_text_shares_nothing_with_calibration_text_of_its_family(name):
    chosen, _ = corpora.evaluation_sentences(name, 200)
    for relative in corpora.relatives(name):
        overlap.check_overlap(sorted(calibration_sentences(relative)), chosen)


@pytest.mark.parametrize("name", ["questions", "docs"])
def test_a_query_stands_beside_its_own_passage_and_no_passage_is_calibration_text(name):
    collection = datasets.retrieval(name, 300)
    assert len(collection.queries) == len(collection.relevant) == len(collection.documents) == 300
    assert sorted({p for grades in collection.relevant for p in grades}) == [
        *range(len(collection.passages))
    ]
    if name == "questions":
        known = {(row.question, row.passage) for row in bundled.questions()}
    else:
        known = {(row.summary, row.rest) for row in bundled.docstrings()}
    for query, grades in zip(collection.queries, collection.relevant, strict=True):
        assert [(query, collection.passages[p]) in known for p in grades] == [True]
    calibration = corpora.documents(corpora.relatives(name), "calibration")
    assert overlap.without_overlap(collection.passages, calibration) == collection.passages


def test_questions_of_one_article_are_one_document_and_of_one_part():
    collection = datasets.retrieval("questions", 600)
    article = {row.passage: row.article for row in bundled.questions()}
    owners = [article[collection.passages[next(iter(grades))]] for grades in collection.relevant]
    pairs = set(zip(owners, collection.documents.tolist(), strict=True))
    assert len(pairs) == len(set(owners)) == len(set(collection.documents.tolist())) < 600


def test_texts_with_a_class_are_fitted_on_and_scored_on_apart():
    classes = datasets.labelled("bbc", 100, 60)
    assert len(classes.texts) == len(classes.labels) == 160 and classes.train == 100
    assert not {*classes.texts[:100]} & {*classes.texts[100:]}
    assert {*classes.labels} == {"business", "entertainment", "politics", "sports", "tech"}
    with pytest.raises(InputError, match=r"^evaluation.labelled = 6000: 2 to \d{4}, the labelled"):
        datasets.labelled("bbc", 3000, 3000)


@pytest.mark.parametrize("name", datasets.TASKS)
def test_a_task_has_one_right_answer_among_its_choices_and_none_of_the_calibration_text(name):
    items = datasets.task(name, 200)
    assert len(items) == 200 and items == datasets.task(name, 200)
    rows = {row["answer"].partition(". ")[2].strip() for row in bundled.task_rows(name)}
    for item in items:
        assert len(item.choices) >= 2 and 0 <= item.answer < len(item.choices)
        assert item.choices[item.answer].strip() in rows
        assert item.prompt.startswith("Question: ") and item.prompt.endswith("\nAnswer:")
    seen = {bundled.situation(row) for row in bundled.task_rows(name)}
    seen &= {*corpora.documents("everyday", "calibration")}
    asked = {
        bundled.situation(row)
        for row in bundled.task_rows(name)
        if any(f"{row.get('passage', '')} {row['question']}".strip() in i.prompt for i in items)
    }
    assert len(asked) >= 150 and len(seen & asked) < len(asked) / 2


# Families of sources


EXPERIMENT = """
model: {model}
calibration: {{texts: {calibration}, samples: 8}}
evaluation: {{{evaluation}, sentences: 20, queries: 20, passages: 20, classification: []}}
candidates: {{a: [{{quantize: {{bits: 8}}}}]}}
"""


def check(tmp_path, model, calibration, evaluation):
    path = tmp_path / "own.yaml"
    path.write_text(EXPERIMENT.format(model=model, calibration=calibration, evaluation=evaluation))
    return plan.check(experiment.read(str(path)), tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("domains") / "model"))


@pytest.mark.parametrize(
    ("calibration", "texts", "seen"),
    [
        ("news", "[bbc]", "news"),
        ("[news, questions]", "[bbc, wiki]", "encyclopedia and news"),
        ("wiki", "questions", "encyclopedia"),
    ],
)
def test_an_evaluation_without_a_family_that_calibration_did_not_see_is_refused(
    tmp_path, model, calibration, texts, seen
):
    evaluation = f"texts: {texts}, retrieval: [news]"
    with pytest.raises(InputError) as refused:
        check(tmp_path, model, calibration, evaluation)
    said = str(refused.value)
    assert said.startswith(f"evaluation.texts = '{texts.strip('[]')}': text of at least one family")
    assert f"({seen} it did)" in said and "same_domain: true" in said and "\n" not in said
    assert check(tmp_path, model, calibration, f"{evaluation}, same_domain: true")["documents"]


def test_one_unseen_family_is_enough(tmp_path, model):
    assert check(tmp_path, model, "news", "texts: [news, wiki], retrieval: [news]")["documents"]


# Retrieval


def test_ranks_with_grades_and_ties_are_those_computed_by_hand():
    similar = np.array(
        [
            [0.9, 0.8, 0.7, 0.1],  # passages 1 (grade 3) and 3 (grade 1), at ranks 2 and 4
            [0.5, 0.5, 0.5, 0.2],  # passage 1 ties with two others: rank 2
            [0.1, 0.2, 0.3, 0.4],  # passage 3 is first
        ]
    )
    found = retrieval.scores(similar, [{1: 3.0, 3: 1.0}, {1: 1.0}, {3: 2.0}])
    first = (3 / np.log2(3) + 1 / np.log2(5)) / (3 + 1 / np.log2(3))
    assert found["ndcg_10"] == pytest.approx([first, 1 / np.log2(3), 1.0])
    assert found["retrieval_mrr"] == pytest.approx([1 / 2, 1 / 2, 1.0])
    assert found["retrieval_recall_1"].tolist() == [0, 0, 1]
    assert found["recall_100"].tolist() == [1, 1, 1]


def test_what_lies_beyond_the_cut_gains_nothing():
    similar = -np.arange(300.0)[None].repeat(3, 0)  # passage p has rank p + 1
    relevant = [{9: 1.0}, {10: 1.0}, {0: 1.0, 99: 1.0, 100: 1.0, 299: 1.0}]
    found = retrieval.scores(similar, relevant)
    ideal = 1 + 1 / np.log2(3) + 1 / 2 + 1 / np.log2(5)
    assert found["ndcg_10"] == pytest.approx([1 / np.log2(11), 0, 1 / ideal])
    assert found["mrr_10"] == pytest.approx([1 / 10, 0, 1])
    assert found["retrieval_mrr"] == pytest.approx([1 / 10, 1 / 11, 1])
    assert found["recall_100"].tolist() == [1, 1, 0.5]


def test_more_than_ten_relevant_passages_fill_the_ideal_ranking():
    grades = dict.fromkeys(range(15), 1.0)
    assert retrieval.scores(-np.arange(20.0)[None], [grades])["ndcg_10"] == pytest.approx([1.0])


def test_an_embedding_that_maps_all_texts_to_one_point_finds_nothing_first():
    found = retrieval.scores(np.ones((1, 101)), [{0: 1.0}])
    assert [float(found[name][0]) for name in ("ndcg_10", "mrr_10", "recall_100")] == [
        0,
        0,
        1,
    ]


def test_overlap_counts_the_baselines_first_ten():
    before = -np.arange(30.0)[None]
    after = before.copy()
    after[0, :4] = -99  # four of the first ten leave
    assert retrieval.first_kept(before, after).tolist() == [0.6]
    assert retrieval.first_kept(before[:, :5], after[:, :5]).tolist() == [1.0]


def embed(opened, texts):
    return opened.encode(texts, normalize_embeddings=True, show_progress_bar=False).astype(float)


@pytest.fixture(scope="module")
def compared(model):
    folder = pipeline.build(model, STEP, Calibration(samples=8, max_length=64))
    comparison = evaluate.compare(model, folder, SPEC)
    rows = {(row["name"], row.get("domain")): row for row in evaluate.read(comparison)[0]}
    return folder, comparison, rows


@pytest.mark.parametrize("name", ["questions", "docs"])
def test_drop_in_searches_the_baselines_index_and_re_index_its_own(model, compared, name):
    folder, comparison, rows = compared
    collection, opened = datasets.retrieval(name, SPEC.queries), kerf.load(folder)
    base = kerf.open_model(model)
    queries, passages = (
        [embed(each, texts) for each in (base, opened)]
        for texts in (collection.queries, collection.passages)
    )
    relevant = collection.relevant
    old = retrieval.scores(queries[0] @ passages[0].T, relevant)["ndcg_10"].mean()
    dropped = retrieval.scores(queries[1] @ passages[0].T, relevant)["ndcg_10"].mean()
    row = rows["drop_in_ndcg_10", name]
    assert (row["value"], row["baseline"]) == pytest.approx((dropped, old), abs=2e-3)
    assert rows["drop_in_ndcg_10_loss", name]["value"] == pytest.approx(old - dropped, abs=2e-3)
    assert rows["drop_in_ndcg_10_ratio", name]["value"] == pytest.approx(dropped / old, abs=5e-3)
    few = [n for n, grades in enumerate(relevant) if max(grades) < SPEC.passages]
    own = queries[1][few] @ passages[1][: SPEC.passages].T
    again = retrieval.scores(own, [relevant[n] for n in few])
    for metric in ("ndcg_10", "retrieval_mrr", "recall_100"):
        assert rows[metric, name]["value"] == pytest.approx(again[metric].mean(), abs=5e-3)
        assert rows[metric, name]["n"] == len(few) < SPEC.queries
    assert rows["ndcg_10", name]["value"] != pytest.approx(dropped, abs=1e-4)
    items = pd.read_parquet(comparison / "items.parquet")
    items = items[(items.metric == "drop_in_ndcg_10") & (items.domain == name)]
    assert items.text.tolist() == collection.queries


def test_the_baseline_by_itself_loses_nothing_on_any_source(model):
    rows = evaluate.read(evaluate.compare(model, "", SPEC, noise_floor=True))[0]
    for row in rows:
        if row["name"].endswith(("_loss", "_flips")):
            assert row["value"] == pytest.approx(0, abs=1e-6), row
    domains = {row["domain"] for row in rows if row.get("domain")}
    assert domains == {"news", "everyday", "questions", "docs", "bbc"}


def test_the_probe_is_fitted_to_the_baseline_and_asked_of_both(model, compared):
    folder, comparison, rows = compared
    classes = datasets.labelled("bbc", SPEC.labelled, SPEC.labelled)
    before, after = (
        embed(each, classes.texts) for each in (kerf.open_model(model), kerf.load(folder))
    )
    train = slice(classes.train)
    probe = LogisticRegression(C=10, max_iter=1000).fit(before[train], classes.labels[train])
    old, new = (probe.predict(each[classes.train :]) for each in (before, after))
    truth = np.array(classes.labels[classes.train :])
    row = rows["probe_accuracy", "bbc"]
    assert row["baseline"] == pytest.approx((old == truth).mean(), abs=0.026)
    assert row["value"] == pytest.approx((new == truth).mean(), abs=0.026)
    changed = rows["probe_flips", "bbc"]
    assert changed["value"] == pytest.approx(((old == truth) != (new == truth)).mean(), abs=0.051)
    assert row["lost"] + row["gained"] == round(changed["value"] * changed["n"])
    assert row["value"] - row["baseline"] == pytest.approx((row["gained"] - row["lost"]) / row["n"])


# Order of domains


ROWS = [
    {"name": "cosine_mean", "domain": "news", "value": 0.95, "low": 0.94, "high": 0.96, "baseline": 1.0},
    {"name": "ndcg_10_loss", "domain": "docs", "value": 0.01, "low": 0.0, "high": 0.02, "baseline": 0.0},
    {"name": "cosine_mean", "domain": "docs", "value": 0.90, "low": 0.89, "high": 0.91, "baseline": 1.0},
    {"name": "cosine_min", "domain": None, "value": 0.5, "low": None, "high": None, "baseline": 1.0},
    {"name": "ndcg_10_loss", "domain": "questions", "value": 0.0, "low": -0.03, "high": 0.03, "baseline": 0.0},
    {"name": "perplexity", "domain": "hard", "value": 40.0, "low": 39.0, "high": 41.0, "baseline": 39.5},
    {"name": "perplexity", "domain": "easy", "value": 14.0, "low": 13.0, "high": 15.0, "baseline": 10.0},
    {"name": "task_flips", "domain": "mmlu", "value": 0.9, "low": 0.8, "high": 1.0, "baseline": 0.0, "evidence": False},
    {"name": "task_flips", "domain": "piqa", "value": 0.1, "low": 0.0, "high": 0.2, "baseline": 0.0, "evidence": True},
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_the_worst_domain_stands_first_and_one_without_evidence_last(seed):
    order = np.random.default_rng(seed).permutation(len(ROWS))
    found = gates.worst_first([ROWS[index] for index in order])
    of = {
        name: [row["domain"] for row in own]
        for name, own in itertools.groupby(found, key=lambda row: row["name"])
    }
    assert of == {
        "cosine_mean": ["docs", "news"],
        "ndcg_10_loss": ["questions", "docs"],  # by the bound, not by the value
        "cosine_min": [None],
        "perplexity": ["easy", "hard"],  # lost more of what the baseline reaches
        "task_flips": ["piqa", "mmlu"],
    }


# Language models


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return str(write_causal(tmp_path_factory.mktemp("domains") / "causal"))


ASKED = Evaluation(
    texts=["news", "docs"], num_chunks=4, seq_len=64, passages=5, tasks=["piqa", "mmlu"], items=12
)


@pytest.fixture(scope="module")
def candidate(language):
    return pipeline.build(language, STEP, Calibration(samples=4, max_length=64))


@torch.no_grad()
def test_the_probability_of_a_choice_is_the_sum_of_its_tokens(language, candidate):
    inputs, reader = causal.gather(language, ASKED), causal_family.tokenizer(language)
    comparison = evaluate.compare(language, candidate, ASKED)
    items = pd.read_parquet(comparison / "items.parquet")
    opened = kerf.open_model(language), kerf.load(candidate)
    for question in inputs.questions[::5]:
        item = next(
            each for each in datasets.task(question.task, 12) if each.prompt == question.prompt
        )
        logp = []
        for model in opened:
            sums = []
            for choice in item.choices:
                start = reader(item.prompt)["input_ids"]
                end = reader(choice, add_special_tokens=False)["input_ids"]
                rows = model(torch.tensor([start + end])).logits[0].double().log_softmax(-1)
                places = range(len(start) - 1, len(start) + len(end) - 1)
                sums.append(sum(float(rows[p, t]) for p, t in zip(places, end, strict=True)))
            logp.append(sums)
        own = items[(items.domain == question.task) & (items.text == question.prompt)]
        row = own[own.metric == "task_logp"].iloc[0]
        found = (row.baseline, row.candidate)
        assert found == pytest.approx([sums[item.answer] for sums in logp], rel=1e-3)
        right = own[own.metric == "task"].iloc[0]
        assert (right.baseline, right.candidate) == tuple(
            float(np.argmax(sums) == item.answer) for sums in logp
        )


def test_every_source_and_task_of_a_language_model_has_rows_of_its_own(language, candidate):
    rows = evaluate.read(evaluate.compare(language, candidate, ASKED))[0]
    by_key = {(row["name"], row.get("domain")): row for row in rows}
    for name in ("perplexity_ratio", "kl_mean", "same_top", "speculative_acceptance"):
        assert {d for n, d in by_key if n == name} == {"news", "docs"}
        assert {by_key[name, d]["n"] for d in ("news", "docs")} == {4 * 32}
    for name in ("task_accuracy", "task_accuracy_loss", "task_flips", "task_logp_change"):
        assert {d for n, d in by_key if n == name} == {"piqa", "mmlu"}
        assert by_key[name, "mmlu"]["evidence"] is False  # a model of random weights guesses
    with torch.no_grad():
        chunks = causal.gather(language, ASKED).chunks
        first = torch.from_numpy(chunks[4:])  # those of docs
        p, q = (
            opened(first).logits[:, 31:-1].double().softmax(-1)
            for opened in (kerf.open_model(language), kerf.load(candidate))
        )
    accepted = torch.minimum(p, q).sum(-1).mean()
    row = by_key["speculative_acceptance", "docs"]
    assert row["value"] == pytest.approx(float(accepted), abs=1e-3) and row["value"] < 0.999


@pytest.mark.parametrize("top", [400, 40, 5])
def test_acceptance_is_the_sum_of_the_lesser_probabilities(top):
    """Of stored tokens exact; what is not stored counts as one outcome, which can only be accepted more."""
    random = torch.Generator().manual_seed(0)
    base = 3 * torch.randn(50, 400, generator=random)
    other = base + 0.8 * torch.randn(50, 400, generator=random)
    targets = torch.zeros(50, dtype=int)
    kept = likelihood.top_log_probabilities(base, targets, top)
    found = likelihood.compare_to_baseline(kept, other, targets)["acceptance"].double()
    exact = torch.minimum(base.double().softmax(1), other.double().softmax(1)).sum(1)
    assert (found >= exact - 1e-5).all() and (found <= 1).all()
    assert torch.allclose(found, exact, atol=1e-5) == (top == 400)
    drafted = torch.multinomial(other.softmax(1), 4000, replacement=True, generator=random)
    ratio = base.softmax(1).gather(1, drafted) / other.softmax(1).gather(1, drafted)
    assert torch.allclose(ratio.clamp(max=1).mean(1).double(), exact, atol=0.03)


def task_rows(right, count=4, of=200):
    """Rows of a task with `count` choices whose baseline answers so many of the questions right."""
    asked = [choices.Question("own", f"{n}", f"{n}", n * count, count, 0) for n in range(of)]
    before = np.full(of * count, -2.0)
    best = [question.first + (n >= right) for n, question in enumerate(asked)]
    before[best] = -1.0
    return choices.compare(asked, before, before - 0.25)[0]


def test_a_baseline_near_chance_is_no_evidence():
    lower = {right: stats.binomtest(right, 200).proportion_ci(0.95).low for right in range(50, 90)}
    least = next(right for right, low in lower.items() if low >= 0.25 + choices.ABOVE_CHANCE)
    assert {row["evidence"] for row in task_rows(least)} == {True}
    assert {row["evidence"] for row in task_rows(least - 1)} == {False}
    rows = {row["name"]: row for row in task_rows(120)}
    assert rows["task_accuracy"]["baseline"] == rows["task_accuracy"]["value"] == 0.6
    assert rows["task_flips"]["value"] == 0 and rows["task_accuracy"]["lost"] == 0
    assert rows["task_logp_change"]["value"] == pytest.approx(-0.25)


# Intervals


def test_the_interval_of_a_ratio_of_means_covers_it_about_as_often_as_it_says():
    """nDCG of pairs of queries of 100 documents, and of a candidate that loses some: the ratio of the two means."""
    random, hits, samples = np.random.default_rng(0), 0, 600
    owners = np.repeat(np.arange(100), 2)

    def drawn(documents):
        base = random.beta(2, 1, documents)[:, None] * random.beta(5, 1, (documents, 2))
        lost = random.random((documents, 2)) < 0.15
        return base.ravel(), np.where(lost, 0.6 * base, base).ravel()

    before, after = drawn(2_000_000)
    truth = after.mean() / before.mean()
    for _ in range(samples):
        before, after = drawn(100)
        documents = ks.Documents(owners, 800)
        low, high = (documents.means(after) / documents.means(before)).interval()
        hits += low <= truth <= high
    assert 0.93 <= hits / samples <= 0.97


def test_a_ratio_by_a_baseline_that_finds_nothing_is_undefined():
    documents = ks.Documents(np.arange(20), 50)
    zero, one = documents.means(np.zeros(20)), documents.means(np.ones(20))
    assert (one / zero).interval() == (None, None)
