"""GPTQ against the paper's equations, computed the slow way, and where its input is degenerate."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kerf.calibration import hessian
from kerf.calibration.hessian import DAMPING, RIDGE, corrected, inverse_factor, moments
from kerf.quantize.gptq import gptq
from kerf.quantize.rounding import rtn
from kerf.tensors import numba_kernels
from kerf.tensors.quantized import find_grid


def layer(seed, rows, columns, tokens=None, dead=()):
    """A weight and the second moments of correlated inputs of uneven size."""
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(columns, columns)) / columns**0.5 + np.eye(columns)
    X = (
        generator.normal(size=(tokens or 4 * columns, columns))
        @ mix
        * generator.uniform(0.3, 3, columns)
    )
    X[:, list(dead)] = 0
    return torch.tensor(generator.normal(size=(rows, columns)), dtype=torch.float32), torch.tensor(
        X.T @ X
    ).float()


def reference(W, H, scale, zero_point, bits, act_order, damping=DAMPING):
    """Codes by arXiv:2210.17323, eq. 2 and 3, in float64: invert H, round a column, repair the others,
    eliminate the column from the inverse."""
    W, H = W.double().numpy().copy(), H.double().numpy().copy()
    rows, columns = W.shape
    scale, zero_point = (
        np.repeat(
            np.broadcast_to(part.double().numpy(), (rows, part.shape[1])),
            columns // part.shape[1],
            axis=1,
        )
        for part in (scale, zero_point)
    )
    diagonal = H.diagonal().copy()
    H[np.diag_indices(columns)] = np.where(
        diagonal == 0, diagonal.mean(), diagonal + damping * diagonal.mean()
    )
    Hinv = np.linalg.inv(H)
    codes = np.zeros(W.shape, np.uint8)
    for i in np.argsort(-diagonal, kind="stable") if act_order else range(columns):
        codes[:, i] = np.clip(np.round(W[:, i] / scale[:, i] + zero_point[:, i]), 0, 2**bits - 1)
        error = W[:, i] - (codes[:, i] - zero_point[:, i]) * scale[:, i]
        W -= np.outer(error / Hinv[i, i], Hinv[i])
        Hinv -= np.outer(Hinv[:, i], Hinv[i]) / Hinv[i, i]
        Hinv[i, i] = 1  # gone: its row and column are zero, and nothing reads it again
        Hinv[i, :i] = Hinv[i, i + 1 :] = Hinv[:i, i] = Hinv[i + 1 :, i] = 0
    return codes


def ordered(H, act_order):
    return hessian.act_order(H) if act_order else None


def objective(weight, quantized, H):
    error = (quantized.dequantize() - weight).double()
    return float(((error @ H.double()) * error).sum())


CASES = [  # rows, columns, bits, group_size (0: one grid a tensor), symmetric, act_order, block
    (1, 1, 4, 1, False, True, 128),
    (5, 12, 4, 12, False, False, 128),
    (5, 12, 4, 12, False, True, 128),
    (16, 40, 2, 8, False, True, 16),
    (16, 40, 2, 8, False, False, 16),
    (16, 40, 3, 8, True, True, 16),
    (9, 35, 3, 7, True, False, 8),
    (9, 32, 8, 0, False, True, 8),
    (6, 160, 4, 32, False, True, 128),
    (6, 128, 2, 64, True, True, 128),
]


# A layer of one column that is dead has no second moments at all, so it is left out.
@pytest.mark.parametrize(
    ("rows", "columns", "bits", "group_size", "symmetric", "act_order", "block", "dead"),
    [(*case, dead) for case in CASES for dead in ((), (0, 3)) if case[1] > 1 or not dead],
)
def test_codes_are_those_of_the_papers_equations(
    rows, columns, bits, group_size, symmetric, act_order, block, dead, monkeypatch
):
    monkeypatch.setattr(numba_kernels, "BLOCK", block)
    for seed in range(4):
        W, H = layer(seed, rows, columns, dead=dead)
        grid = find_grid(
            W, bits, group_size or columns, symmetric, False, per_tensor=not group_size
        )
        found, damping = gptq(W, H, *grid, bits, ordered(H, act_order), symmetric)
        assert damping == DAMPING
        assert np.array_equal(found.codes.numpy(), reference(W, H, *grid, bits, act_order))
        assert (found.bits, found.group_size, found.symmetric) == (
            bits,
            group_size or columns,
            symmetric,
        )


def test_the_weights_and_moments_that_are_passed_in_stay_as_they_are():
    W, H = layer(0, 4, 16)
    before = W.clone(), H.clone()
    gptq(W, H, *find_grid(W, 2, 16, False, False), 2)
    assert torch.equal(W, before[0]) and torch.equal(H, before[1])


@pytest.mark.parametrize("size", [0.001, 1.0, 50.0])
def test_with_uncorrelated_inputs_it_rounds_to_nearest(size):
    W, _ = layer(1, 8, 24)
    nearest = rtn(W, 3, 8)
    found, _ = gptq(W, size * torch.eye(24), nearest.scale, nearest.zero_point, 3)
    assert torch.equal(found.codes, nearest.codes)


@pytest.mark.parametrize("factor", [1 / 64, 1024])
def test_any_multiple_of_the_moments_gives_the_same_codes(factor):
    W, H = layer(2, 8, 24)
    grid = find_grid(W, 3, 8, False, False)
    assert torch.equal(gptq(W, H, *grid, 3)[0].codes, gptq(W, H * factor, *grid, 3)[0].codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
def test_the_output_error_is_below_that_of_rounding_to_nearest(bits, act_order):
    for seed in range(5):
        W, H = layer(seed, 32, 64)
        nearest = rtn(W, bits, 32)
        found, _ = gptq(W, H, nearest.scale, nearest.zero_point, bits, ordered(H, act_order))
        assert objective(W, found, H) < 0.9 * objective(W, nearest, H)


def test_dead_columns_are_rounded_as_they_are():
    dead = [2, 7, 15]
    W, H = layer(3, 8, 16, dead=dead)
    nearest = rtn(W, 3, 4)
    found, _ = gptq(W, H, nearest.scale, nearest.zero_point, 3)
    assert torch.equal(found.codes[:, dead], nearest.codes[:, dead])
    assert not torch.equal(found.codes, nearest.codes)


@pytest.mark.parametrize("tokens", [1, 3])
def test_moments_of_fewer_tokens_than_columns_still_give_a_better_layer(tokens):
    W, H = layer(4, 8, 32, tokens=tokens)
    nearest = rtn(W, 3, 32)
    found, damping = gptq(W, H, nearest.scale, nearest.zero_point, 3)
    assert found.dequantize().isfinite().all() and damping <= 1
    assert objective(W, found, H) < objective(W, nearest, H)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_give_none(wrong):
    W, H = layer(5, 4, 8)
    H[2, 3] = H[3, 2] = wrong
    assert gptq(W, H, *find_grid(W, 4, 8, False, False), 4)[0] is None


@pytest.mark.parametrize("columns", [8, 200])
def test_numbers_that_overflow_give_none(columns):
    W, H = layer(5, 4, columns)
    W *= 1e37 / W.abs().max()
    grid = find_grid(W, 2, columns, False, False, scale_dtype=torch.float32)
    assert gptq(W, H * 1e12, *grid, 2)[0] is None


def test_moments_of_zero_give_none():
    assert inverse_factor(torch.zeros(3, 3))[0] is None


def indefinite(lowest):
    """Two columns whose second moments have the eigenvalue `lowest`, as rounding can leave it."""
    return torch.tensor([[1.0, 1 - lowest], [1 - lowest, 1.0]])


@pytest.mark.parametrize(("lowest", "taken"), [(0.5, 0.1), (-0.5, 1.0)])
def test_damping_grows_until_the_moments_can_be_factorized_and_is_returned(lowest, taken):
    H = indefinite(lowest)
    Hinv, damping = inverse_factor(H)
    assert damping == pytest.approx(taken)
    assert torch.equal(Hinv, Hinv.triu())
    assert torch.allclose(Hinv.T @ Hinv, torch.linalg.inv(H + taken * torch.eye(2)), rtol=1e-4)
    W = torch.tensor([[0.3, -0.4]])
    assert gptq(W, H, *find_grid(W, 4, 2, False, False), 4)[1] == damping


def test_beyond_a_damping_of_one_the_answer_is_none():
    Hinv, damping = inverse_factor(indefinite(-1.5))
    assert Hinv is None and damping > 1


@pytest.mark.parametrize("bits", [1.6, 2, 3, 4])
@pytest.mark.parametrize("act_order", [False, True])
def test_sweeps_of_coordinate_descent_only_ever_lower_the_loss(bits, act_order):
    for seed in range(5):
        W, H = layer(seed, 16, 64)
        grid, order = find_grid(W, bits, 32, False, True), ordered(H, act_order)
        loss = [
            objective(W, gptq(W, H, *grid, bits, order, sweeps=n)[0], hessian.damped(H, DAMPING))
            for n in (0, 1, 2, 8)
        ]
        assert loss[0] > loss[1] and all(
            after <= before * (1 + 1e-5) for before, after in zip(loss, loss[1:], strict=False)
        )


def test_after_many_sweeps_no_single_code_could_do_better():
    W, H = layer(7, 4, 24)
    found, _ = gptq(W, H, *find_grid(W, 3, 8, False, False), 3, sweeps=50)
    least = objective(W, found, hessian.damped(H, DAMPING))
    for place in range(W.numel()):
        for step in (-1, 1):
            codes = found.codes.clone()
            code = int(codes.view(-1)[place]) + step
            if 0 <= code <= 7:
                codes.view(-1)[place] = code
                assert objective(
                    W, replace(found, codes=codes), hessian.damped(H, DAMPING)
                ) >= least * (1 - 1e-5)


def drifted(seed, tokens=400, columns=32, noise=0.2):
    """Inputs of the float model, and what an earlier layer's error made of them: mostly a mix of the others."""
    generator = torch.Generator().manual_seed(seed)
    F = torch.randn(tokens, columns, generator=generator)
    return F, F @ (
        torch.eye(columns)
        + noise * torch.randn(columns, columns, generator=generator) / columns**0.5
    )


def test_moments_are_those_of_all_batches_and_every_token_counts():
    F, X = drifted(4)
    H, drift, tokens = moments(iter(X.split(150)), iter(F.split(150)))
    assert tokens == 400
    for found, wanted in ((H, X.T @ X), (drift, (F - X).T @ X)):
        assert (found - wanted).norm() < 5e-3 * wanted.norm()
    assert moments(iter([X]))[1] is None


def test_the_corrected_weight_undoes_what_a_linear_drift_did():
    W = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        F, X = drifted(seed)
        found = corrected(W, X.T @ X, (F - X).T @ X, tokens=10**9)
        assert (X @ found.T - F @ W.T).norm() < 0.01 * (X @ W.T - F @ W.T).norm()


def test_the_corrected_weight_is_least_squares_pulled_towards_the_weight():
    F, X = drifted(3)
    W, tokens = torch.randn(8, 32, generator=torch.Generator().manual_seed(2)), 4000
    ridge = RIDGE * 32 / tokens
    pull = (
        ridge * float((X.T @ X).diagonal().mean()) ** 0.5 / ridge**0.5
    )  # rows that ask for W itself
    A = np.vstack([X.double(), pull * np.eye(32)])
    B = np.vstack([(F @ W.T).double(), pull * W.T.double()])
    expected = np.linalg.lstsq(A, B, rcond=None)[0].T
    assert np.allclose(corrected(W, X.T @ X, (F - X).T @ X, tokens).numpy(), expected, atol=1e-4)


def test_without_drift_or_with_one_that_is_not_finite_the_weight_stays():
    W, H = layer(8, 4, 16)
    for drift in (torch.zeros(16, 16), torch.full((16, 16), torch.nan)):
        assert torch.equal(corrected(W, H, drift, 100), W)


@pytest.mark.parametrize("counts", [(8, 8, 8), (1, 5, 3)])
def test_layers_stacked_by_rows_get_the_codes_they_get_alone(counts):
    W, H = layer(6, sum(counts), 144)
    scale, zero_point = find_grid(W, 2, 48, False, True)
    together = gptq(W, H, scale, zero_point, 2)[0].codes.split(counts)
    pieces = zip(*(part.split(counts) for part in (W, scale, zero_point)), together, strict=True)
    for weight, *grid, codes in pieces:
        assert torch.equal(gptq(weight, H, *grid, 2)[0].codes, codes)
