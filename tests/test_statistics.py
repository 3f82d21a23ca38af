"""Statistics against scipy, and against what they promise: coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kerf.evaluate import stats as ks


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=40))
def test_spearman_is_scipys_and_a_draw_correlates_the_ranks_of_the_whole_sample(rows):
    x, y = (np.array(column) for column in zip(*rows, strict=True))
    drawn = ks.Documents(np.arange(len(x)), 3)
    ours = drawn.spearman(x, y, np.arange(len(x)), np.arange(len(x)))
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        assert np.isnan(ours.value)
        return
    assert ours.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    for weights, rho in zip(drawn.weights[1:4].astype(int), ours.replicates, strict=True):
        a, b = (np.repeat(stats.rankdata(each), weights) for each in (x, y))
        assert (
            np.isnan(rho)
            if min(np.ptp(a), np.ptp(b)) == 0
            else rho == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
        )


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_binomial_test_of_the_flips(pairs):
    before, after = (np.array(column) for column in zip(*pairs, strict=True))
    lost, gained, p = ks.mcnemar(before, after)
    assert lost == sum(b and not a for b, a in pairs)
    assert gained == sum(a and not b for b, a in pairs)
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert p == pytest.approx(expected)


def test_mean_interval_over_single_documents_is_near_the_t_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)
    mean, low, high = ks.mean_interval(values, np.arange(400))
    t_low, t_high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(t_low, abs=0.03) and high == pytest.approx(t_high, abs=0.03)


def test_items_of_one_document_do_not_count_as_independent():
    generator = np.random.default_rng(1)
    documents = np.repeat(np.arange(30), 10)
    values = generator.normal(size=30)[documents]
    _, low, high = ks.mean_interval(values, documents)
    _, naive_low, naive_high = ks.mean_interval(values, np.arange(300))
    assert high - low > 2.5 * (naive_high - naive_low)


def test_bootstrap_of_clusters_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        documents = np.repeat(np.arange(40), 5)
        values = generator.normal(size=40)[documents] + generator.normal(size=200)
        _, low, high = ks.mean_interval(values, documents)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 200 <= 0.99


@pytest.mark.parametrize(("n", "q"), [(400, 0.01), (60, 0.5), (1000, 0.01)])
def test_percentile_bounds_cover_the_true_quantile(n, q):
    generator = np.random.default_rng(3)
    truth = stats.norm.ppf(q)
    bounds = [ks.percentile_interval(generator.normal(size=n), q)[1:] for _ in range(400)]
    assert np.mean([low <= truth <= high for low, high in bounds]) >= 0.93


def test_too_few_values_have_no_lower_bound_for_a_percentile_and_the_number_needed_is_right():
    n = ks.items_for_percentile(0.01)
    values = np.arange(float(n))
    assert ks.percentile_interval(values, 0.01)[1] is not None
    assert ks.percentile_interval(values[:-1], 0.01)[1] is None


def test_median_of_six_has_an_interval_and_of_five_has_none():
    assert ks.median_interval(np.arange(6.0))[1:] == (0.0, 5.0)
    assert ks.median_interval(np.arange(5.0))[1:] == (None, None)
