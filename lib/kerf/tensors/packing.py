"""Codes of 2 to 8 bits packed without gaps: n codes of b bits take ceil(n * b / 8) bytes.

Ternary codes (0, 1, 2; bits = 1.6) are packed five to a byte, as digits in base 3.
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
    flat, width, packed = np.ascontiguousarray(flat, np.uint8), int(bits), []
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK, None]
        spread = np.unpackbits(chunk, axis=1, count=width, bitorder="little")
        packed.append(np.packbits(spread, bitorder="little").tobytes())
    return b"".join(packed)


def unpack(packed: bytes, bits: float, count: int) -> np.ndarray:
    """The first `count` codes, uint8. Raises ValueError when the bytes hold fewer."""
    raw = np.frombuffer(packed, np.uint8)
    if bits == TERNARY and raw.size * 5 >= count:
        return (raw[:, None] // _DIGITS % 3).reshape(-1)[:count]
    if raw.size * 8 < count * bits:
        raise ValueError(f"{raw.size} bytes hold fewer than {count} codes of {bits} bits")
    width = int(bits)
    if 8 % width == 0:  # codes do not cross bytes: shift and mask, which is much faster
        whole = raw[: -(-count * width // 8), None] >> np.arange(0, 8, width, dtype=np.uint8)
        return (whole & np.uint8(2**width - 1)).reshape(-1)[:count]
    codes = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        chunk = raw[start * width // 8 : -(-stop * width // 8)]
        spread = np.unpackbits(chunk, count=(stop - start) * width, bitorder="little")
        by_code = spread.reshape(-1, width)
        codes[start:stop] = np.packbits(by_code, axis=1, bitorder="little")[:, 0]
    return codes
