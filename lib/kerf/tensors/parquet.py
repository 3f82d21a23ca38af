"""The store: packed weights in one Parquet file.

`weights.parquet` has a row per tensor. A quantized tensor is packed codes, scales and zero points; a
tensor that stays float is its bytes. Of a pruned one only what is left is there, and a bitmap that says
where it was: after the file's compression a 2:4 pattern takes less than the indices of what it keeps
would. The schema version stands in the Parquet metadata.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from kerf.core.errors import InputError
from kerf.tensors.packing import pack, unpack

SCHEMA = 3
READS = (2, 3)  # the second knew nothing of pruned tensors
SMALL = 1 << 16  # bytes of neighbouring tensors that share a row group
SPARSE = 1 / 16  # share of zeros from which a float tensor is stored as a bitmap and what is left
WEIGHTS = "weights.parquet"
_FLOATS = ("float32", "float16", "int64", "bool")


def _schema(version: int = SCHEMA):
    import pyarrow as pa

    columns = [("name", pa.string()), ("dtype", pa.string()), ("shape", pa.list_(pa.int64()))]
    columns += [("bits", pa.float32()), ("group_size", pa.int64()), ("symmetric", pa.bool_())]
    columns += [("scale_shape", pa.list_(pa.int64()))]
    columns += [(name, pa.binary()) for name in ("values", "codes", "scale", "zero_point")]
    columns += [("kept", pa.binary())] if version > 2 else []
    return pa.schema(columns, metadata={"kerf.schema": str(version)})


def write_weights(path: Path, tensors: dict | Iterable[tuple[str, object]]) -> None:
    """Write name -> Quantized, or a float tensor that is kept as it is, one at a time, in that order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    # A row group a tensor, so that a reader holds one at a time; a dictionary of unique blobs helps nobody.
    options = {
        "compression": "zstd",
        "compression_level": 9,
        "use_dictionary": False,
        "write_statistics": False,
    }
    with pq.ParquetWriter(path, schema, write_page_checksum=True, **options) as writer:
        for rows in _row_groups(tensors.items() if isinstance(tensors, dict) else tensors):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _row_groups(tensors: Iterable[tuple[str, object]]) -> Iterator[list[dict]]:
    """A tensor each; small ones together, since Parquet has more to say of a group than a bias holds."""
    waiting, size = [], 0
    for name, value in tensors:
        row = {"name": name, **_row(value)}
        waiting.append(row)
        size += sum(len(part) for part in row.values() if isinstance(part, bytes))
        if size > SMALL:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def row_bytes(value) -> int:
    """Bytes of one tensor in the file, about: its parts, compressed."""
    import pyarrow as pa

    parts = [part for part in _row(value).values() if isinstance(part, bytes)]
    codec = pa.Codec("zstd", compression_level=9)
    return (
        sum(codec.compress(part).size for part in parts) + 400
    )  # what Parquet says of a row group


def stored_bits(value) -> float:
    """Bits of one tensor before the file's compression, the map of what is kept included."""
    from kerf.tensors.quantized import Quantized

    if isinstance(value, Quantized):
        return value.stored_bits()
    left = int((value != 0).sum())
    sparse = left <= (1 - SPARSE) * value.numel()
    return 8 * value.element_size() * (left if sparse else value.numel()) + (
        value.numel() if sparse else 0
    )


def _row(value) -> dict:
    from kerf.tensors.quantized import (  # torch takes seconds; `verify` needs none
        Quantized,
        zero_point_bits,
        zero_step,
    )

    if not isinstance(value, Quantized):
        array = value.detach().cpu().contiguous().numpy()
        if str(array.dtype) not in _FLOATS:
            raise ValueError(f"the store keeps {', '.join(_FLOATS)}, not {array.dtype}")
        row = {"dtype": str(array.dtype), "shape": list(array.shape)}
        kept = (
            (array != 0) | np.signbit(array)
            if array.ndim == 2 and array.dtype.kind == "f"
            else np.ones(1, bool)
        )
        if not kept.size or kept.mean() > 1 - SPARSE:
            return {**row, "values": array.tobytes()}
        return {
            **row,
            "values": array[kept].tobytes(),
            "kept": np.packbits(kept, bitorder="little").tobytes(),
        }
    codes = value.codes if value.kept is None else value.codes[value.kept]
    return {
        "dtype": str(value.scale.dtype).removeprefix("torch."),
        "shape": list(value.codes.shape),
        "bits": value.bits,
        "group_size": value.group_size,
        "symmetric": value.symmetric,
        "scale_shape": list(value.scale.shape),
        "codes": pack(codes.numpy(), value.bits),
        "kept": None
        if value.kept is None
        else np.packbits(value.kept.numpy(), bitorder="little").tobytes(),
        "scale": value.scale.numpy().tobytes(),
        "zero_point": b""
        if value.symmetric
        else pack(
            (value.zero_point.numpy() / zero_step(value.bits)).astype(np.uint8),
            zero_point_bits(value.bits),
        ),
    }


def read_tensors(path: Path) -> Iterator[tuple[str, object]]:
    """(name, Quantized or float tensor), one at a time.

    Raises InputError for a file that is no store or of a newer schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            version = int((file.schema_arrow.metadata or {}).get(b"kerf.schema", b"0"))
            if version not in READS:
                raise InputError(
                    f"{path}: has schema {version or 'of something else'}; this Kerf reads {SCHEMA}"
                )
            if not file.schema_arrow.equals(_schema(version)):
                raise ValueError("its columns are not those of a store")
            for number in range(file.num_row_groups):
                for row in file.read_row_group(number).to_pylist():
                    yield row["name"], _tensor(row)
    except InputError:
        raise
    except (
        OSError,
        pa.ArrowException,
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # by what a wrong byte hits
        raise InputError(
            f"{path}: is no whole Parquet file ({str(error).splitlines()[0][:100]})"
        ) from None


def _tensor(row: dict):
    import torch

    from kerf.tensors.quantized import TERNARY, Quantized, top_code, zero_point_bits, zero_step

    if row["bits"] is None:
        if row["dtype"] not in _FLOATS:
            raise InputError(f"{row['name']}: dtype {row['dtype']} is none of {', '.join(_FLOATS)}")
        return torch.from_numpy(_spread(np.frombuffer(row["values"], row["dtype"]), row))
    shape, scale_shape = row["shape"], row["scale_shape"]
    bits = int(row["bits"]) if row["bits"] >= 2 else TERNARY  # a float32 on disk
    scale = np.frombuffer(row["scale"], row["dtype"]).reshape(scale_shape).copy()
    if row["symmetric"]:
        zero_point = np.full(scale_shape, (top_code(bits) + 1) // 2, np.float32)
    else:
        steps = unpack(row["zero_point"], zero_point_bits(bits), scale.size).reshape(scale_shape)
        zero_point = steps.astype(np.float32) * np.float32(zero_step(bits))
    kept = _kept(row)
    codes = _spread(
        unpack(row["codes"], bits, int(np.prod(shape)) if kept is None else int(kept.sum())), row
    )
    parts = (torch.from_numpy(array) for array in (codes, scale, zero_point))
    kept = None if kept is None else torch.from_numpy(kept)
    return Quantized(
        *parts, bits=bits, group_size=row["group_size"], symmetric=row["symmetric"], kept=kept
    )


def _kept(row: dict) -> np.ndarray | None:
    """bool of the tensor's shape: where a pruned tensor has values."""
    if row.get("kept") is None:
        return None
    count = int(np.prod(row["shape"]))
    return (
        np.unpackbits(np.frombuffer(row["kept"], np.uint8), count=count, bitorder="little")
        .view(bool)
        .reshape(row["shape"])
    )


def _spread(values: np.ndarray, row: dict) -> np.ndarray:
    """The tensor whose kept values these are, 0 elsewhere."""
    kept = _kept(row)
    if kept is None:
        return values.reshape(row["shape"]).copy()
    whole = np.zeros(row["shape"], values.dtype)
    whole[kept] = values
    return whole


def read_weights(path: Path) -> dict:
    """State dict in float32: name -> tensor, quantized ones dequantized."""
    from kerf.tensors.quantized import Quantized

    return {
        name: t.dequantize() if isinstance(t, Quantized) else t for name, t in read_tensors(path)
    }
