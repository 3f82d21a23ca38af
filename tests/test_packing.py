"""Packing: every code comes back, and no byte more than needed is spent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerf.tensors import packing
from kerf.tensors.packing import pack, unpack


@settings(deadline=None, database=None)
@given(
    st.integers(2, 8), st.integers(0, 200), st.integers(0, 2**32 - 1), st.sampled_from([8, 24, 64])
)
def test_codes_come_back_from_the_fewest_bytes_across_chunks(bits, count, seed, chunk):
    codes = np.random.default_rng(seed).integers(0, 2**bits, count, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CHUNK", chunk)
        packed = pack(codes, bits)
        assert len(packed) == -(-count * bits // 8)
        assert np.array_equal(unpack(packed, bits, count), codes)
    assert packed == pack(codes, bits)  # the bytes do not depend on the chunk


@settings(deadline=None, database=None)
@given(st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_ternary_codes_come_back_from_a_byte_for_five(count, seed):
    codes = np.random.default_rng(seed).integers(0, 3, count, np.uint8)
    packed = pack(codes, 1.6)
    assert len(packed) == -(-count // 5) and np.array_equal(unpack(packed, 1.6, count), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_code_of_every_width_comes_back(bits):
    codes = np.full(9, 2**bits - 1, np.uint8)
    assert np.array_equal(unpack(pack(codes, bits), bits, 9), codes)


def test_the_least_significant_bit_comes_first():
    assert pack(np.array([1, 0, 3, 2]), 2) == bytes([0b10_11_00_01])
    assert pack(np.array([1, 7]), 3) == bytes([0b111001])


def test_a_matrix_is_packed_row_by_row_whatever_its_strides():
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert pack(codes, 4) == pack(codes.ravel(), 4)
    assert pack(codes.T, 4) == pack(codes.T.ravel(), 4) != pack(codes, 4)


@pytest.mark.parametrize(
    ("code", "bits"), [(4, 2), (8, 3), (128, 7), (255, 2), (256, 8), (-1, 8), (3, 1.6)]
)
def test_a_code_that_does_not_fit_is_an_error(code, bits):
    with pytest.raises(ValueError, match=f"{code} does not fit {bits} bits"):
        pack(np.array([0, code, 1]), bits)


@pytest.mark.parametrize(("bits", "count"), [(2, 5), (3, 8), (8, 1), (5, 17), (1.6, 6)])
def test_too_few_bytes_are_an_error(bits, count):
    packed = pack(np.zeros(count, np.uint8), bits)
    with pytest.raises(ValueError, match=f"fewer than {count} codes of {bits} bits"):
        unpack(packed[:-1], bits, count)
