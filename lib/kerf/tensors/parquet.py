"""The weight file of a candidate: packed weights in one Parquet file.

`weights.parquet` has a row per tensor. A quantized tensor is packed codes, scales and zero points; a float tensor is its bytes.
Of a pruned tensor only the remaining values are stored, and a bitmap of where they are: after the file's compression a 2:4
pattern takes less than the indices of its values would. The schema version is in the Parquet metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerf.core.errors import InputError
from kerf.tensors.packing import pack, unpack

if TYPE_CHECKING:
    import pyarrow
    import torch

    from kerf.tensors.quantized import Quantized

SCHEMA = 3
READS = (2, 3)  # version 2 had no pruned tensors
SMALL = 1 << 16  # bytes of neighbouring tensors that share a row group
SPARSE = (
    1 / 16
)  # share of zeros from which a float tensor is stored as a bitmap and its other values
WEIGHTS = "weights.parquet"
_CODEC = {"compression": "zstd", "compression_level": 9}
_ROW_GROUP_BYTES = 400  # of Parquet's metadata for a row group
_FLOATS = ("float32", "float16", "int64", "bool")


def _schema(version: int = SCHEMA) -> pyarrow.Schema:
    import pyarrow as pa

    columns = [("name", pa.string()), ("dtype", pa.string()), ("shape", pa.list_(pa.int64()))]
    columns += [("bits", pa.float32()), ("group_size", pa.int64()), ("symmetric", pa.bool_())]
    columns += [("scale_shape", pa.list_(pa.int64()))]
    columns += [(name, pa.binary()) for name in ("values", "codes", "scale", "zero_point")]
    columns += [("kept", pa.binary())] if version > 2 else []
    return pa.schema(columns, metadata={"kerf.schema": str(version)})


def write_weights(
    path: Path, tensors: dict[str, Any] | Iterable[tuple[str, torch.Tensor | Quantized]]
) -> None:
    """Write name -> Quantized or float tensor, one at a time, in that order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A row group per tensor, so that a reader holds one at a time; dictionaries do not help unique blobs.
    options = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    pairs = tensors.items() if isinstance(tensors, dict) else tensors
    with pq.ParquetWriter(path, _schema(), **_CODEC, **options) as writer:
        for rows in _row_groups(pairs):
            writer.write_table(pa.Table.from_pylist(rows, schema=_schema()))


def _row_groups(tensors: Iterable[tuple[str, Any]]) -> Iterator[list[dict]]:
    """Rows of one tensor each; small ones share a group, whose metadata would be larger than a bias."""
    rows, size = [], 0
    for name, value in tensors:
        row = {"name": name, **_row(value)}
        rows.append(row)
        size += sum(len(part) for part in row.values() if isinstance(part, bytes))
        if size > SMALL:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def row_bytes(value: torch.Tensor | Quantized) -> int:
    """Approximate bytes of one tensor in the file: its parts, compressed."""
    import pyarrow as pa

    codec = pa.Codec("zstd", compression_level=9)
    parts = [part for part in _row(value).values() if isinstance(part, bytes)]
    return sum(codec.compress(part).size for part in parts) + _ROW_GROUP_BYTES


def stored_bits(value: torch.Tensor | Quantized) -> float:
    """Bits of one tensor before the file's compression, the bitmap of a pruned one included."""
    from kerf.tensors.quantized import Quantized

    if isinstance(value, Quantized):
        return value.stored_bits()
    count, nonzero = value.numel(), int((value != 0).sum())
    if nonzero <= (1 - SPARSE) * count:
        return 8 * value.element_size() * nonzero + count
    return 8 * value.element_size() * count


def _row(value: Any) -> dict:
    from kerf.tensors.quantized import (
        Quantized,
    )  # imports torch, which `manifest.verify` does without

    return _quantized_row(value) if isinstance(value, Quantized) else _float_row(value)


def _float_row(value: torch.Tensor) -> dict:
    array = value.detach().cpu().contiguous().numpy()
    if str(array.dtype) not in _FLOATS:
        raise ValueError(f"the weight file stores {', '.join(_FLOATS)}, not {array.dtype}")
    row = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.ndim == 2 and array.dtype.kind == "f" and array.size:
        mask = (array != 0) | np.signbit(array)
        if mask.mean() <= 1 - SPARSE:
            return {**row, "values": array[mask].tobytes(), "kept": _bitmap(mask)}
    return {**row, "values": array.tobytes()}


def _quantized_row(value: Quantized) -> dict:
    from kerf.tensors.quantized import zero_point_bits, zero_step

    codes, mask = value.codes.cpu().numpy(), None
    scale, zero_point = value.scale.cpu().numpy(), b""
    if value.mask is not None:
        mask = value.mask.cpu().numpy()
    if not value.symmetric:
        steps = (value.zero_point.cpu().numpy() / zero_step(value.bits)).astype(np.uint8)
        zero_point = pack(steps, zero_point_bits(value.bits))
    return {
        "dtype": str(scale.dtype),
        "shape": list(codes.shape),
        "bits": value.bits,
        "group_size": value.group_size,
        "symmetric": value.symmetric,
        "scale_shape": list(scale.shape),
        "codes": pack(codes if mask is None else codes[mask], value.bits),
        "kept": None if mask is None else _bitmap(mask),
        "scale": scale.tobytes(),
        "zero_point": zero_point,
    }


def _bitmap(mask: np.ndarray) -> bytes:
    return np.packbits(mask, bitorder="little").tobytes()


def read_tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, Quantized or float tensor), one at a time.

    Raises InputError for a file that is not a weight file or has a newer schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            version = int((file.schema_arrow.metadata or {}).get(b"kerf.schema", b"0"))
            if version not in READS:
                found = version or "of something else"
                raise InputError(f"{path}: has schema {found}; this Kerf reads {SCHEMA}")
            if not file.schema_arrow.equals(_schema(version)):
                raise ValueError("its columns are not those of a weight file")
            for number in range(file.num_row_groups):
                for row in file.read_row_group(number).to_pylist():
                    yield row["name"], _tensor(row)
    except InputError:
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        cause = str(error).splitlines()[0][:100]  # which of them depends on the damaged byte
        raise InputError(f"{path}: is no whole Parquet file ({cause})") from None


def _tensor(row: dict) -> torch.Tensor | Quantized:
    import torch

    from kerf.tensors.quantized import TERNARY, Quantized, top_code, zero_point_bits, zero_step

    mask, shape = _mask(row), row["shape"]
    if row["bits"] is None:
        if row["dtype"] not in _FLOATS:
            raise InputError(f"{row['name']}: dtype {row['dtype']} is none of {', '.join(_FLOATS)}")
        return torch.from_numpy(_spread(np.frombuffer(row["values"], row["dtype"]), shape, mask))
    bits = int(row["bits"]) if row["bits"] >= 2 else TERNARY  # a float32 on disk
    scale = np.frombuffer(row["scale"], row["dtype"]).reshape(row["scale_shape"]).copy()
    if row["symmetric"]:
        zero_point = np.full(scale.shape, (top_code(bits) + 1) // 2, np.float32)
    else:
        steps = unpack(row["zero_point"], zero_point_bits(bits), scale.size).reshape(scale.shape)
        zero_point = steps.astype(np.float32) * np.float32(zero_step(bits))
    count = int(np.prod(shape)) if mask is None else int(mask.sum())
    return Quantized(
        torch.from_numpy(_spread(unpack(row["codes"], bits, count), shape, mask)),
        torch.from_numpy(scale),
        torch.from_numpy(zero_point),
        bits,
        row["group_size"],
        row["symmetric"],
        None if mask is None else torch.from_numpy(mask),
    )


def _mask(row: dict) -> np.ndarray | None:
    """bool of the tensor's shape: where a pruned tensor has values."""
    if row.get("kept") is None:
        return None
    bitmap, count = np.frombuffer(row["kept"], np.uint8), int(np.prod(row["shape"]))
    mask = np.unpackbits(bitmap, count=count, bitorder="little")
    return mask.view(bool).reshape(row["shape"])


def _spread(values: np.ndarray, shape: list[int], mask: np.ndarray | None) -> np.ndarray:
    """The tensor with these values where the mask is True and 0 elsewhere."""
    if mask is None:
        return values.reshape(shape).copy()
    tensor = np.zeros(shape, values.dtype)
    tensor[mask] = values
    return tensor


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict: name -> float tensor, quantized ones dequantized to float32."""
    from kerf.tensors.quantized import Quantized

    return {
        name: value.dequantize() if isinstance(value, Quantized) else value
        for name, value in read_tensors(path)
    }
