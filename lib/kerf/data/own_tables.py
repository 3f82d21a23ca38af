"""Tables of one's own: JSONL, CSV, TSV, Parquet, and folders that `datasets.Dataset.save_to_disk` wrote.

Nothing is unpickled, and no loading script is run. Files are read up to a limit.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerf.core.digests import digests, sha256
from kerf.core.errors import listed, refuse
from kerf.core.user_files import read_bounded

if TYPE_CHECKING:
    import pandas as pd

LARGEST, MOST_ROWS = (
    2**30,
    10_000_000,
)  # bytes of a file or a folder (uncompressed), rows of a table
SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (".jsonl", ".ndjson", ".parquet", *SEPARATORS)
FORMATS = "a text file, JSONL, CSV, TSV, Parquet or a folder saved by datasets"


def columns(
    parameter: str, path: Path, usual: Sequence[tuple[str, ...]]
) -> tuple["pd.DataFrame", list[str]]:
    """A table and the names of its columns that serve: those of `usual` that it has, else all, if there are no more."""
    content = table(parameter, path)
    names, count = list(content.columns), len(usual[0])
    known = next((list(own) for own in usual if {*own} <= {*names}), None)
    if known is None and len(names) != count:
        accepted = f"a table with columns {' or '.join(listed(own, 'and') for own in usual)}"
        raise refuse(parameter, path.name, f"{accepted}; it has {listed(names, 'and') or 'none'}")
    return content, known or names


def table(parameter: str, path: Path) -> "pd.DataFrame":
    """A table. Raises InputError for another format, a damaged file, and one beyond LARGEST or MOST_ROWS."""
    try:
        content = _table(path)
    except (OSError, ValueError, LookupError, RecursionError, TypeError, OverflowError) as error:
        cause = " ".join(str(error).split())[:200]
        raise refuse(parameter, str(path), f"{FORMATS} that can be read ({cause})") from None
    if len(content) > MOST_ROWS:
        raise refuse(parameter, str(path), f"at most {MOST_ROWS} rows; it has {len(content)}")
    content.columns = content.columns.map(str)
    return content


def _table(path: Path) -> "pd.DataFrame":
    import pandas as pd

    suffix = path.suffix.lower()
    if path.is_dir():
        return _saved(path)
    if suffix == ".parquet":
        return _parquet(path)
    if suffix in SEPARATORS:
        content = read_bounded(path, LARGEST)
        file = io.BytesIO(content)
        options: dict[str, Any] = {
            "sep": SEPARATORS[suffix],
            "dtype": str,
            "keep_default_na": False,
        }
        if suffix == ".tsv" and not _is_quoted(content.decode("utf-8-sig")):
            options["quoting"] = csv.QUOTE_NONE
        return pd.read_csv(file, encoding="utf-8-sig", **options)
    if suffix in TABLES:
        return pd.DataFrame(json_rows(path))
    raise ValueError(f"{suffix or 'no ending'} is the name of no table")


def _is_quoted(content: str) -> bool:
    """Whether quotation marks surround fields of a TSV; in many they are text."""
    try:
        widths = {len(row) for row in csv.reader(io.StringIO(content), "excel-tab", strict=True)}
    except csv.Error:
        return False
    return len(widths - {0}) == 1


def json_rows(path: Path) -> list[dict]:
    """Objects of a JSONL file. Raises OSError or ValueError for any other, with the number of the line."""
    rows = []
    for number, line in enumerate(read_bounded(path, LARGEST).decode("utf-8-sig").split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            raise ValueError(f"line {number} is no JSON") from None
        if row is not None and not isinstance(row, dict):
            raise ValueError(f"line {number} is no object")
        rows += [] if row is None else [row]
    return rows


def _parquet(path: Path) -> "pd.DataFrame":
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(io.BytesIO(read_bounded(path, LARGEST)))
    about = parquet.metadata
    size = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
    if size > LARGEST or about.num_rows > MOST_ROWS:
        raise ValueError(f"{size} bytes in {about.num_rows} rows are too many")
    return parquet.read().to_pandas(ignore_metadata=True)


def _saved(path: Path) -> "pd.DataFrame":
    """A dataset that `save_to_disk` wrote: Arrow files, which no code is needed to read."""
    import datasets

    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise ValueError(f"it holds several datasets; name one of them: {listed(splits)}")
    size = sum(entry[1] for entry in signature(path))
    if size > LARGEST:
        raise ValueError(f"{size} bytes are too many")
    return datasets.Dataset.load_from_disk(str(path.resolve())).with_format(None).to_pandas()


def signature(path: Path) -> tuple:
    """Name, size and time of a file, or of all files of a folder: what it is read again for."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = ((file.name, file.stat()) for file in files)
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in stats)


def content_digests(path: Path) -> dict[str, str]:
    """sha256 of a file, or of all files of a folder."""
    return digests(path) if path.is_dir() else {path.name: sha256(path)}
