"""The grid: what rounding may cost at most, and weights that are awkward to put on one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kerf.quantize.rounding import rtn
from kerf.tensors import quantized
from kerf.tensors.quantized import find_grid

GROUP = 8


@st.composite
def weights(draw):
    """A seeded weight of 1 to 4 rows and 1 to 4 groups, of very different magnitudes, some with an offset."""
    rows, groups, seed = (
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
        draw(st.integers(0, 2**32 - 1)),
    )
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, groups * GROUP, generator=generator)
    return (values + draw(st.sampled_from([0, 0, 3, -3]))) * draw(st.sampled_from([1e-2, 1.0, 1e3]))


def spread(q):
    """scale and zero_point for every weight, as float32."""
    rows, columns = q.codes.shape
    return (
        p.float().expand(rows, -1).repeat_interleave(columns // p.shape[1], 1)
        for p in (q.scale, q.zero_point)
    )


BITS = st.integers(2, 8)
EXAMPLES = settings(max_examples=60, deadline=None, database=None)


@EXAMPLES
@given(weights(), BITS, st.booleans(), st.booleans())
def test_every_weight_goes_to_the_nearest_point_of_its_grid(weight, bits, symmetric, clip):
    q = rtn(weight, bits, GROUP, symmetric, clip)
    scale, zero_point = spread(q)
    assert int(q.codes.max()) < 2**bits
    low, high = (0 - zero_point) * scale, (2**bits - 1 - zero_point) * scale
    inside = (weight >= low) & (weight <= high)
    error = (q.dequantize() - weight).abs()
    assert (error <= scale * 0.5001).masked_select(inside).all()
    ends = torch.where(weight < low, low, high)
    assert torch.equal(q.dequantize()[~inside], ends[~inside])


@EXAMPLES
@given(weights(), BITS, st.booleans())
def test_without_clipping_no_weight_is_off_by_more_than_half_a_scale(weight, bits, symmetric):
    q = rtn(weight, bits, GROUP, symmetric, scale_dtype=torch.float32)
    scale, _ = spread(q)
    assert ((q.dequantize() - weight).abs() <= scale * 0.5001).all()


@EXAMPLES
@given(weights(), BITS, st.booleans())
def test_a_symmetric_zero_point_is_the_middle_whatever_the_weights(weight, bits, clip):
    _, zero_point = find_grid(weight, bits, GROUP, True, clip)
    assert (zero_point == 2 ** (bits - 1)).all()


@EXAMPLES
@given(weights(), BITS, st.booleans(), st.booleans())
def test_zero_stays_exactly_zero_where_zero_points_are_whole(weight, bits, symmetric, clip):
    if bits == 2 and not symmetric:
        return
    weight[:, ::3] = 0
    assert (rtn(weight, bits, GROUP, symmetric, clip).dequantize()[:, ::3] == 0).all()


@EXAMPLES
@given(weights(), BITS, st.booleans(), st.booleans(), st.booleans())
def test_the_clip_search_is_never_worse_than_min_max(weight, bits, symmetric, weighted, per_tensor):
    importance = torch.linspace(0, 1, weight.shape[1]) ** 4 if weighted else None

    def error(clip):
        quantized = rtn(weight, bits, GROUP, symmetric, clip, importance, per_tensor=per_tensor)
        squared = (quantized.dequantize() - weight).double().square() * (
            1 if importance is None else importance
        )
        return squared.sum() if per_tensor else squared.reshape(len(weight), -1, GROUP).sum(-1)

    plain = error(clip=False)
    assert (error(clip=True) <= plain * (1 + 1e-4) + 1e-12).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_clip_search_helps_where_there_is_an_outlier(weighted):
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    weight[:, 7] = 30
    importance = torch.ones(256)
    importance[7] = 0
    options = (importance,) if weighted else ()
    kept = torch.arange(256) != 7 if weighted else slice(None)
    clipped, plain = (
        rtn(weight, 2, 256, False, clip, *options).dequantize() for clip in (True, False)
    )
    error_clipped, error_plain = (
        (found - weight)[:, kept].square().mean() for found in (clipped, plain)
    )
    assert error_clipped < error_plain * (0.6 if weighted else 1)


@EXAMPLES
@given(weights(), st.sampled_from([1.6, 2, 3]), st.booleans())
def test_zero_points_are_multiples_of_their_step_and_codes_fit(weight, bits, clip):
    q = rtn(weight, bits, GROUP, clip=clip)
    assert (
        q.zero_point % quantized.zero_step(bits) == 0
    ).all() and q.zero_point.max() <= quantized.top_code(bits)
    assert int(q.codes.max()) <= quantized.top_code(bits)


def test_at_two_bits_half_steps_lose_less_of_a_bell_curve_than_whole_ones(monkeypatch):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    half = (rtn(weight, 2, 64, clip=True).dequantize() - weight).square().mean()
    monkeypatch.setattr(quantized, "zero_step", lambda bits, symmetric=False: 1.0)
    whole = (rtn(weight, 2, 64, clip=True).dequantize() - weight).square().mean()
    assert half < 0.95 * whole


def test_ternary_is_symmetric_with_zero_among_its_points():
    q = rtn(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), 1.6, 32, clip=True)
    assert (q.zero_point == 1).all() and set(q.codes.unique().tolist()) == {0, 1, 2}
    assert (q.dequantize() == 0).any()


AWKWARD = {
    "constant": torch.full((2, 8), 0.3),
    "negative constant": torch.full((2, 8), -0.3),
    "zero": torch.zeros(2, 8),
    "one row of zeros": torch.stack([torch.zeros(8), torch.arange(8.0)]),
    "tiny": torch.full((2, 8), 1e-30),
    "below float32's smallest": torch.full((2, 8), 1e-40),
    "one column": torch.tensor([[0.5], [-2.0], [0.0]]),
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("weight", AWKWARD.values(), ids=AWKWARD)
def test_awkward_rows_stay_finite_and_close(weight, clip, symmetric, dtype):
    q = rtn(weight, 4, weight.shape[1], symmetric, clip, scale_dtype=dtype)
    assert (q.scale > 0).all() and q.scale.isfinite().all()
    scale, _ = spread(q)
    assert ((q.dequantize() - weight).abs() <= scale * 0.51).all()


@pytest.mark.parametrize("size", [5e-4, 1e-3, 1e-2])
def test_small_weights_lose_no_more_than_others_to_a_float16_scale(size):
    weight = size * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    half, single = (
        rtn(weight, 8, 64, scale_dtype=dtype).dequantize()
        for dtype in (torch.float16, torch.float32)
    )
    assert (half - weight).norm() < 1.2 * (single - weight).norm()


def test_a_scale_beyond_float16_is_an_overflow_and_fits_float32():
    weight = torch.tensor([[-1e6, 1e6]])
    with pytest.raises(OverflowError, match="does not fit torch.float16"):
        find_grid(weight, 2, 2, False, False)
    assert find_grid(weight, 2, 2, False, False, scale_dtype=torch.float32)[0].isfinite().all()


@pytest.mark.parametrize(
    ("group_size", "per_tensor", "shape"),
    [(12, True, (1, 1)), (12, False, (5, 1)), (4, False, (5, 3))],
)
@pytest.mark.parametrize("clip", [False, True])
def test_a_grid_is_shared_by_tensor_row_or_group(group_size, per_tensor, shape, clip):
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))
    q = rtn(weight, 4, group_size, clip=clip, importance=torch.ones(12), per_tensor=per_tensor)
    assert q.scale.shape == q.zero_point.shape == shape
    assert q.codes.shape == weight.shape and q.codes.dtype == torch.uint8


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_dequantize_is_code_minus_zero_point_times_scale(per_tensor, symmetric):
    q = rtn(torch.randn(3, 12), 3, 12 if per_tensor else 4, symmetric, per_tensor=per_tensor)
    for row in range(3):
        for column in range(12):
            at = (0, 0) if per_tensor else (row, column // 4)
            code, scale, zero_point = (
                q.codes[row, column].item(),
                q.scale[at].item(),
                q.zero_point[at].item(),
            )
            assert q.dequantize()[row, column].item() == pytest.approx(
                (code - zero_point) * scale, rel=1e-6
            )


@pytest.mark.parametrize(
    ("bits", "symmetric", "expected"),
    [
        (3, False, 12 * 3 + 3 * 16 + 3 * 3),
        (3, True, 12 * 3 + 3 * 16),
        (2, False, 12 * 2 + 3 * 16 + 3 * 3),
        (2, True, 12 * 2 + 3 * 16),
        (1.6, True, 12 * 1.6 + 3 * 16),
    ],
)
def test_stored_bits_count_codes_scales_and_zero_points(bits, symmetric, expected):
    assert rtn(torch.randn(3, 4), bits, 4, symmetric).stored_bits() == pytest.approx(expected)
