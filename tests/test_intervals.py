"""Intervals that hold their value, cover as often as they say, and are absent where too few documents say anything."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import write_model

from kerf.evaluate import causal as kind_of_causal
from kerf.evaluate import causal_metrics, common, fidelity, gates, ranking, retrieval
from kerf.evaluate import cross_encoder as kind_of_reranker
from kerf.evaluate import encoder as kind_of_encoder
from kerf.evaluate import stats as ks
from kerf.workbench.cli import main
from kerf.workbench.report.answers import explained, reason


def embeddings(documents, noise, seed=0):
    """Texts of documents that resemble each other, before and after, rows of length one."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(documents.max() + 1, 24))[documents] + random.normal(
        size=(len(documents), 24)
    )
    both = rows, rows + noise * random.normal(size=rows.shape)
    return [each / np.linalg.norm(each, axis=1, keepdims=True) for each in both]


def encoder(before, after, documents):
    rows = fidelity.cosines(before, after, documents)
    rows += fidelity.similarities(before, after, documents)
    relevant = [{len(documents) - 1 - number: 1.0} for number in range(len(documents))]
    old, drop, new = (
        retrieval.scores(queries @ passages[::-1].T, relevant)
        for queries, passages in ((before, before), (after, before), (after, after))
    )
    overlap = retrieval.first_kept(before @ before.T, after @ before.T)
    rows += retrieval.drop_in(old, drop, overlap, documents)
    return rows + retrieval.re_index(old, new, documents)


def reranker(before, after, documents):
    return ranking.metrics((before @ before.T)[:, :8], (after @ after.T)[:, :8], documents)


def causal(before, after, documents):
    random, n = np.random.default_rng(0), len(documents)
    loss = random.exponential(3, n)
    moved = np.abs(before - after).sum(1)
    scored = causal_metrics.Scored(
        kl=moved,
        acceptance=1 / (1 + moved),
        loss=loss + moved,
        base_loss=loss,
        top=np.zeros(n, int),
        same_top=moved < np.median(moved),
        targets=np.zeros(n, int),
        documents=documents,
        positions=np.arange(n),
        sources=np.full(n, "news"),
        right=(loss < 3, loss + moved < 3.1),
        passage_documents=documents,
        continued=(
            np.zeros((len(np.unique(documents)), 4)),
            np.ones((len(np.unique(documents)), 4)),
        ),
        full=moved,
        speeds=({"prefill_tokens_per_second": 1.0, "decode_tokens_per_second": 1.0},) * 2,
        choices=(loss, loss),
    )
    return causal_metrics.metrics(scored)


FAMILIES = {"encoder": encoder, "reranker": reranker, "causal": causal}
EXACT = (
    "cosine_min",
    "kl_max",
    "flips_lost",
    "flips_gained",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_a_value_is_never_outside_its_interval(family, data):
    documents = np.repeat(np.arange(data.draw(st.integers(12, 20))), data.draw(st.integers(1, 4)))
    noise = data.draw(st.sampled_from([0.0, 1e-9, 1e-5, 1e-3, 0.1, 10.0]))
    rows = FAMILIES[family](*embeddings(documents, noise, data.draw(st.integers(0, 99))), documents)
    for row in rows:
        assert row["low"] is None or row["low"] <= row["value"], row
        assert row["high"] is None or row["value"] <= row["high"], row
    json.dumps(rows, allow_nan=False)


@given(st.lists(st.floats(-1e6, 1e6), min_size=12, max_size=40), st.integers(0, 5))
def test_the_interval_of_any_numbers_holds_their_mean(values, few):
    drawn = ks.Documents(np.arange(len(values)) // (1 + few % 2), 50, few).means(np.array(values))
    low, high = drawn.interval()
    assert low is None or low <= drawn.value <= high


@pytest.mark.parametrize("documents", [1, 2, 11])
@pytest.mark.parametrize("family", FAMILIES)
def test_few_documents_have_no_interval_and_decide_nothing(family, documents):
    owners = np.arange(44) % documents
    for row in FAMILIES[family](*embeddings(np.sort(owners), 0.01), np.sort(owners)):
        if row["name"] in EXACT:
            continue
        assert row["low"] is row["high"] is None and row["value"] is not None, row
        gate = {"metric": row["name"], "op": ">=", "threshold": -9.0}
        verdict = gates.judge_gate(gate, "c", row)
        assert (
            verdict["verdict"] == "INCONCLUSIVE"
            and verdict["needed_n"] >= row["n"] * 12 / documents
        )
        said = reason(explained(verdict, {"metrics": [row]}))
        assert (
            f"too few independent documents for an interval: {documents}, at least 12" in said
            and "would decide" in said
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_documents_as_are_asked_for_have_intervals(family):
    owners = np.repeat(np.arange(12), 3)
    for row in FAMILIES[family](*embeddings(owners, 0.01), owners):
        assert row["name"] in EXACT or row["low"] is not None or row["high"] is not None, row


@pytest.mark.parametrize("noise", [1e-4, 3e-4, 0.2])
def test_rank_correlations_cover_what_they_estimate(noise):
    """Of nearly equal models ranking every draw anew, with the ties that repeats make, covers less than half as often."""
    found = []
    for seed in range(60):
        owners = np.repeat(np.arange(15), 2)
        found.append(fidelity.similarities(*embeddings(owners, noise, seed), owners)[0])
    truth = np.mean([row["value"] for row in found])
    assert np.mean([row["low"] <= truth <= row["high"] for row in found]) > 0.83


@pytest.mark.parametrize("skewed", [False, True])
def test_few_documents_cover_the_mean_about_as_often_as_is_said(skewed):
    random, hits = np.random.default_rng(0), 0
    for _ in range(300):
        values = random.exponential(size=12) if skewed else random.normal(1, size=12)
        low, high = ks.mean_interval(values, np.arange(12))[1:]
        hits += low <= 1 <= high
    assert hits / 300 > (0.89 if skewed else 0.92)


def test_differences_of_two_candidates_are_paired_and_hold_their_value():
    documents = np.repeat(np.arange(20), 3)
    drawn, random = ks.Documents(documents), np.random.default_rng(0)
    hard = random.normal(0, 5, 60)
    a, b = drawn.means(hard), drawn.means(hard + 0.1 + random.normal(0, 0.01, 60))
    low, high = (b - a).interval()
    assert 0.09 < low <= (b - a).value <= high < 0.11


COLLAPSED = {
    "encoder": ("similarity_spearman",),
    "reranker": ("score_spearman",),
    "causal": ("loss_pearson",),
}


def collapsed(family):
    owners = np.repeat(np.arange(15), 3)
    before, _ = embeddings(owners, 0)
    if family == "causal":
        scored = {row["name"]: row for row in causal(before, before, owners)}
        loss = np.random.default_rng(0).exponential(3, 45)
        flat = causal_metrics.Scored(
            kl=loss,
            acceptance=np.exp(-loss),
            loss=np.full(45, 6.0),
            base_loss=loss,
            top=np.zeros(45, int),
            same_top=loss < 0,
            targets=np.zeros(45, int),
            documents=owners,
            positions=np.arange(45),
            sources=np.full(45, "news"),
            right=(loss < 3, loss < 0),
            passage_documents=owners,
            continued=(np.zeros((16, 4)), np.ones((16, 4))),
            full=loss,
            speeds=({"prefill_tokens_per_second": 1.0, "decode_tokens_per_second": 1.0},) * 2,
            choices=(loss, loss),
        )
        assert scored["loss_pearson"]["value"] == pytest.approx(1)
        return causal_metrics.metrics(flat)
    return FAMILIES[family](before, np.tile(np.eye(24)[0], (45, 1)), owners)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_candidate_that_collapsed_fails_with_the_figures_that_there_are(family):
    rows = {row["name"]: row for row in collapsed(family)}
    json.dumps(rows, allow_nan=False)
    for name in COLLAPSED[family]:
        assert rows[name]["value"] is None and rows[name]["why"]
        gate = {"metric": name, "op": ">=", "threshold": 0.9}
        verdict = gates.judge_gate(gate, "c", rows[name])
        assert (
            verdict["verdict"] == "FAIL"
            and gates.grade([verdict]) == "F"
            and verdict["bound"] is None
        )
        assert "undefined" in reason(explained(verdict, {"metrics": [rows[name]]}))
    assert sum(row["value"] is not None for row in rows.values()) >= len(rows) - 2


def test_a_baseline_that_collapsed_fails_no_candidate():
    owners, flat = np.repeat(np.arange(15), 3), np.tile(np.eye(24)[0], (45, 1))
    row = fidelity.similarities(flat, embeddings(owners, 0)[0], owners)[0]
    assert row["value"] is row["baseline"] is None
    assert (
        gates.judge_gate({"metric": row["name"], "op": ">=", "threshold": 0.9}, "c", row)["verdict"]
        == "INCONCLUSIVE"
    )


def test_a_perplexity_beyond_any_number_is_undefined_and_fails():
    owners = np.repeat(np.arange(15), 3)
    drawn = ks.Documents(owners)
    with np.errstate(over="ignore"):
        row = fidelity.drawn("perplexity", drawn.means(np.full(45, 1e4)).map(np.exp), 20.0, 45)
    assert (
        row["value"] is None
        and gates.judge_gate({"metric": "perplexity", "op": "<=", "threshold": 1e300}, "c", row)[
            "verdict"
        ]
        == "FAIL"
    )


def test_check_says_that_a_text_has_too_few_documents(tmp_path, capsys):
    lines = [
        " ".join(
            f"Number {j} of {i} tells about {7 * i + j} and about {100 * j + i}." for i in range(60)
        )
        for j in range(12)
    ]
    (tmp_path / "few.txt").write_text("\n".join(lines))
    path = tmp_path / "few.yaml"
    path.write_text(
        json.dumps(
            {
                "model": str(write_model(tmp_path / "encoder")),
                "calibration": {"texts": "news", "samples": 8},
                "evaluation": {
                    "texts": ["everyday", str(tmp_path / "few.txt")],
                    "sentences": 40,
                    "retrieval": ["news"],
                    "queries": 40,
                    "passages": 40,
                    "classification": [],
                },
                "candidates": {"a": [{"quantize": {"bits": 8}}]},
            }
        )
    )
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr().out
    assert (
        "independent documents; with fewer than 12 there are no intervals, and gates stay INCONCLUSIVE"
        in said
    )


def of_news(rows):
    return {row["name"]: row for row in common.of_domain(rows, "news")}


def test_a_conclusion_of_a_collapsed_candidate_is_said_and_drawn():
    owners = np.repeat(np.arange(15), 3)
    before, flat = embeddings(owners, 0)[0], np.tile(np.eye(24)[0], (45, 1))
    rows = of_news(encoder(before, flat, owners))
    pairs = {"rated": (np.arange(40), np.arange(1, 41), np.arange(40.0))}
    rows |= {row["name"]: row for row in fidelity.human(pairs, {"rated": before}, {"rated": flat})}
    assert (
        rows["human_spearman"]["value"] is None
        and rows["human_spearman_rated"]["baseline"] is not None
    )
    said = kind_of_encoder.conclusion(rows, {})
    assert (
        "Agreement with people cannot be judged: difference undefined (undefined for these scores"
        in said
    )
    ranked = of_news(reranker(before, flat, owners))
    assert "Spearman of the scores undefined" in kind_of_reranker.conclusion(ranked, {})
    beyond = fidelity.row("perplexity", np.inf, None, None, 20.0, 45)
    spoken = of_news([*collapsed("causal"), beyond])
    assert "to beyond any number" in kind_of_causal.conclusion(
        spoken, {"storage": {"tokens": 1, "kept": 0.0, "whole": 0.0}}
    )
    kind_of_encoder._histograms(before, flat)
