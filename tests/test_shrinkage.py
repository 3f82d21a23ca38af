"""Shrinkage of second moments: more with fewer tokens, none with very many, by what sources have in common."""

import pytest
import torch
from support.small import write_model

from kerf.calibration.hessian import act_order, inverse_factor, ordered, output_error
from kerf.calibration.shrinkage import found_share, shrunk
from kerf.config import Calibration
from kerf.models import families, registry
from kerf.quantize.gptq import gptq
from kerf.tensors.quantized import find_grid

COLUMNS = 48


def covariance(seed: int) -> torch.Tensor:
    """A factor (COLUMNS, COLUMNS) of a random covariance."""
    drawn = torch.Generator().manual_seed(seed)
    mix = torch.randn(COLUMNS, COLUMNS, generator=drawn) / COLUMNS**0.5
    return mix + torch.eye(COLUMNS)


def sampled(factor: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    """X^T X of normal tokens."""
    drawn = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, COLUMNS, generator=drawn) @ factor.T
    return X.T @ X


def test_what_is_shrunk_keeps_its_diagonal():
    H = sampled(covariance(0), 100, 1)
    expected = 0.7 * H + 0.3 * torch.diag(H.diagonal())
    assert torch.allclose(shrunk(H.clone(), 0.3), expected)
    assert torch.equal(shrunk(H.clone(), 0.0), H)


def test_fewer_tokens_are_shrunk_more_and_very_many_not_at_all():
    factor = covariance(0)
    shares = [
        found_share([sampled(factor, tokens // 2, seed) for seed in (1, 2)])
        for tokens in (24, 96, 40_000)
    ]
    assert shares[0] > shares[1] > shares[2] == 0


def test_sources_that_differ_are_shrunk_however_many_tokens_they_have():
    alike = [sampled(covariance(0), 40_000, seed) for seed in (1, 2)]
    apart = [sampled(covariance(seed), 40_000, seed) for seed in (1, 2)]
    assert found_share(alike) == 0
    assert found_share(apart) > 0.2


@pytest.mark.parametrize(
    "parts", [[], [torch.eye(4)], [torch.eye(4), torch.full((4, 4), torch.nan)]]
)
def test_nothing_is_shrunk_without_two_finite_parts(parts):
    assert found_share(parts) == 0


def test_a_mixture_and_shrinkage_lower_the_loss_on_a_source_that_was_not_seen():
    """Sources share strong directions and each has some of its own."""

    def source(number: int) -> torch.Tensor:
        common, own = covariance(0), covariance(100 + number)
        return torch.linalg.cholesky(common @ common.T + own @ own.T)

    W = torch.randn(32, COLUMNS, generator=torch.Generator().manual_seed(5))
    scale, zero = find_grid(W, 3, COLUMNS, symmetric=False, clip=True)

    def loss(H: torch.Tensor, unseen: torch.Tensor) -> float:
        order = act_order(H)
        factor = inverse_factor(ordered(H, order))
        result, _ = gptq(W, H, scale, zero, 3, order, factor=factor, sweeps=2)
        return output_error(W, result.dequantize(), unseen)

    one, mixed, less = 0.0, 0.0, 0.0
    for turn in range(4):
        parts = [sampled(source(3 * turn + n), 4000, n) for n in (0, 1)]
        unseen = sampled(source(3 * turn + 2), 40_000, 9)
        H = sum(parts)
        one += loss(parts[0], unseen)
        mixed += loss(H, unseen)
        less += loss(shrunk(H.clone(), found_share(parts)), unseen)
    assert less < mixed < one


def test_batches_know_their_source_and_hold_its_share(tmp_path):
    folder = write_model(tmp_path / "model")
    spec = Calibration(texts=("questions", "news"), samples=40, max_length=32)
    opened = registry.open_model(str(folder))
    batches = families.of_opened(opened).batches(opened, spec)
    counts = dict.fromkeys((0, 1), 0)
    for batch in batches:
        counts[batch.source] += len(batch["input_ids"])
    assert counts == {0: 20, 1: 20}
