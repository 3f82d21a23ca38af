"""Codes of 2 to 8 bits packed without a gap: n codes of b bits take ceil(n * b / 8) bytes.

Ternary codes (0, 1, 2; bits = 1.6) lie five in a byte, as digits to base 3.
"""

import numpy as np

TERNARY = 1.6
_DIGITS = np.array([1, 3, 9, 27, 81], np.uint8)
_CHUNK = 1 << 20  # codes at a time, a multiple of 8, so that every chunk ends on a whole byte


def pack(codes: np.ndarray, bits: float) -> bytes:
    """Pack unsigned codes (any shape, values below 2**bits, or 3), least significant bit or digit first."""
    flat = np.asarray(codes).reshape(-1)
    for code in (flat.min(), flat.max()) if flat.size else ():
        if not 0 <= int(code) < (3 if bits == TERNARY else 2**bits):
            raise ValueError(f"a code of {code} does not fit {bits} bits")
    if bits == TERNARY:
        fives = np.pad(flat.astype(np.uint8), (0, -flat.size % 5)).reshape(-1, 5)
        return (fives * _DIGITS).sum(1, dtype=np.uint8).tobytes()
    flat = np.ascontiguousarray(flat, np.uint8)
    pieces = (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))
    return b"".join(_pack_piece(piece, bits) for piece in pieces)


def _pack_piece(piece: np.ndarray, bits: int) -> bytes:
    spread = np.unpackbits(piece[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(spread, bitorder="little").tobytes()


def unpack(packed: bytes, bits: float, count: int) -> np.ndarray:
    """The first `count` codes, uint8. Raises ValueError when the bytes hold fewer."""
    raw = np.frombuffer(packed, np.uint8)
    if bits == TERNARY and raw.size * 5 >= count:
        return (raw[:, None] // _DIGITS % 3).reshape(-1)[:count]
    if raw.size * 8 < count * bits:
        raise ValueError(f"{raw.size} bytes hold fewer than {count} codes of {bits} bits")
    if 8 % bits == 0:  # codes do not cross bytes: shift and mask, which is much faster
        whole = raw[: -(-count * bits // 8), None] >> np.arange(0, 8, bits, dtype=np.uint8)
        return (whole & (2**bits - 1)).astype(np.uint8, copy=False).reshape(-1)[:count]
    codes = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        chunk = raw[start * bits // 8 : -(-stop * bits // 8)]
        spread = np.unpackbits(chunk, count=(stop - start) * bits, bitorder="little").reshape(
            -1, bits
        )
        codes[start:stop] = np.packbits(spread, axis=1, bitorder="little")[:, 0]
    return codes
