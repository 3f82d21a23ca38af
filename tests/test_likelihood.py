"""Likelihood: every figure against its definition, slow and obvious, and against closed forms."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from kerf.evaluate import likelihood as lk
from kerf.evaluate.stats import weighted_quantiles


def logits(seed, tokens=150, vocabulary=500, scale=3.0):
    return scale * torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed))


def targets(tokens=150, vocabulary=500):
    return torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(9))


def exact(base, other):
    return rel_entr(softmax(base.double().numpy(), 1), softmax(other.double().numpy(), 1)).sum(1)


def test_with_every_token_kept_the_divergence_is_scipys():
    base, other = logits(0), logits(0) + 0.3 * logits(1)
    found = lk.compare_to_baseline(
        lk.top_log_probabilities(base, targets(), top=500), other, targets()
    )
    assert np.allclose(found["kl"].numpy(), exact(base, other), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("top", [1, 8, 100])
def test_with_some_kept_it_is_a_lower_bound_that_grows(top):
    base, other = logits(0), logits(0) + 0.3 * logits(1)
    found = lk.compare_to_baseline(
        lk.top_log_probabilities(base, targets(), top), other, targets()
    )["kl"].numpy()
    more = lk.compare_to_baseline(
        lk.top_log_probabilities(base, targets(), top + 50), other, targets()
    )["kl"].numpy()
    assert (
        (found <= exact(base, other) + 1e-5).all()
        and found.mean() < more.mean()
        and (found >= 0).all()
    )


def test_the_remainder_is_one_outcome():
    p, q = torch.tensor([[0.5, 0.2]]), torch.tensor([[0.1, 0.3]])
    wanted = 0.5 * np.log(5) + 0.2 * np.log(2 / 3) + 0.3 * np.log(0.3 / 0.6)
    assert float(lk.divergence(p.log(), q.log())[0]) == pytest.approx(wanted, rel=1e-6)


def test_losses_and_top_tokens_follow_their_definition_across_slices():
    base, other, wanted = logits(2), logits(3), targets()
    found = lk.compare_to_baseline(lk.top_log_probabilities(base, wanted), other, wanted)
    rows = np.arange(len(wanted))
    assert np.allclose(
        found["base_loss"], -log_softmax(base.double().numpy(), 1)[rows, wanted], rtol=1e-5
    )
    assert np.allclose(
        found["loss"], -log_softmax(other.double().numpy(), 1)[rows, wanted], rtol=1e-5
    )
    assert torch.equal(found["top"], other.argmax(1)) and torch.equal(
        found["same_top"], base.argmax(1) == other.argmax(1)
    )


def test_the_model_against_itself_has_no_divergence():
    base = logits(4)
    found = lk.compare_to_baseline(lk.top_log_probabilities(base, targets()), base, targets())
    assert (
        float(found["kl"].max()) < 1e-6
        and found["same_top"].all()
        and torch.equal(found["loss"], found["base_loss"])
    )


def test_known_noise_gives_the_divergence_of_its_closed_form():
    """Two outcomes, log-odds z against z + d: KL = p log(p/q) + (1-p) log((1-p)/(1-q)), and d^2 p(1-p)/2 for small d."""
    z, d = torch.linspace(-3, 3, 60), 0.05
    base, other = (torch.stack([each, torch.zeros(60)], 1) for each in (z, z + d))
    found = lk.compare_to_baseline(
        lk.top_log_probabilities(base, torch.zeros(60, dtype=int)),
        other,
        torch.zeros(60, dtype=int),
    )["kl"].double()
    p, q = z.double().sigmoid(), (z + d).double().sigmoid()
    assert torch.allclose(
        found, p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log(), rtol=1e-3, atol=5e-7
    )  # float32
    assert torch.allclose(found, d**2 * p * (1 - p) / 2, rtol=0.05)


def test_the_mean_divergence_of_gaussian_noise_on_the_logits_is_half_its_variance_times_the_spread():
    """Noise of variance s^2 on every logit: E KL = s^2 / 2 * (1 - sum p^2) to second order."""
    base = logits(5, tokens=400, vocabulary=300)
    other = base + 0.05 * torch.randn(base.shape, generator=torch.Generator().manual_seed(6))
    wanted = 0.05**2 / 2 * float((1 - base.softmax(1).square().sum(1)).mean())
    found = lk.compare_to_baseline(
        lk.top_log_probabilities(base, targets(400, 300), top=300), other, targets(400, 300)
    )["kl"]
    assert float(found.mean()) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(bad):
    base = logits(0)
    base[3, 7] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        lk.top_log_probabilities(base, targets())


@pytest.mark.parametrize("q", [0.0, 0.5, 0.9, 0.999, 1.0])
def test_weighted_quantiles_are_those_of_the_repeated_values(q):
    random = np.random.default_rng(0)
    values, weights = random.normal(size=40), random.integers(0, 4, (5, 40))
    found = weighted_quantiles(values, q, weights)
    for row, value in zip(weights, found, strict=True):
        repeated = np.sort(np.repeat(values, row))
        assert value == np.quantile(repeated, q, method="inverted_cdf") or q == 0.0


def test_a_refusal_need_not_wait_for_torch():
    """The command line imports the runner; what reads models is imported when there is a model to read."""
    command = "import sys, kerf.workbench.run.runner; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout
        == "False\n"
    )
