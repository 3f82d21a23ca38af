"""Collections for retrieval in the format of BEIR (Thakur et al. 2021, arXiv:2104.08663): a folder with three kinds of files.

`corpus.jsonl`: _id, title, text; `queries.jsonl`: _id, text; `qrels/*.tsv`: query-id, corpus-id, score under a header line.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerf.core.errors import InputError, refuse
from kerf.data import own_tables

SPLITS = ("test", "dev", "train")  # in this order, of the files in qrels/


class Collection(NamedTuple):
    """Texts of queries and passages, and grades above 0 of a query's passages, by their ids; what was not used, counted."""

    queries: dict[str, str]
    passages: dict[str, str]
    grades: dict[str, dict[str, float]]
    split: str
    unused: dict[str, int]


class Drawn(NamedTuple):
    """Columns of `kerf.data.datasets.Retrieval`."""

    queries: list[str]
    passages: list[str]
    relevant: list[dict[int, float]]
    documents: np.ndarray


def is_collection(path: Path) -> bool:
    """Whether a path is a folder with one of the files of a collection."""
    return any((path / name).exists() for name in ("corpus.jsonl", "queries.jsonl", "qrels"))


def read(parameter: str, folder: Path) -> Collection:
    """The collection in `folder`. Raises InputError for a missing file or column, an id that stands twice, and judgements of
    which more than a tenth name an unknown query or passage."""
    return _read(parameter, folder, own_tables.signature(folder))


@lru_cache(maxsize=2)
def _read(parameter: str, folder: Path, _: tuple) -> Collection:
    if not (folder / "corpus.jsonl").is_file() or not (folder / "queries.jsonl").is_file():
        raise refuse(parameter, str(folder), "a folder with corpus.jsonl, queries.jsonl and qrels/")
    queries, no_query = _texts(parameter, folder / "queries.jsonl")
    passages, no_passage = _texts(parameter, folder / "corpus.jsonl")
    file = _judgements(parameter, folder / "qrels")
    grades: dict[str, dict[str, float]] = {}
    rows, unknown, zero = list(_rows(parameter, file)), 0, 0
    for query, passage, grade in rows:
        if query not in queries or passage not in passages:
            unknown += 1
        elif not grade > 0 or not queries[query] or not passages[passage]:
            zero += 1
        elif grades.setdefault(query, {}).setdefault(passage, grade) != grade:
            raise refuse(f"{parameter}: {file.name}", f"{query}, {passage}", "one grade of a pair")
    if 10 * unknown > len(rows):
        accepted = f"ids of {folder.name}; {unknown} of {len(rows)} judgements name others"
        raise refuse(f"{parameter}: {file.name}", folder.name, accepted)
    unused = {"empty queries": no_query, "empty passages": no_passage}
    unused |= {"judgements of unknown ids": unknown, "judgements of 0 or without text": zero}
    unused |= {"queries without judgement": len(queries) - no_query - len(grades)}
    return Collection(queries, passages, grades, file.stem, unused)


def _texts(parameter: str, path: Path) -> tuple[dict[str, str], int]:
    """Title and text by id, and how many are empty."""
    try:
        rows = own_tables.json_rows(path)
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(parameter, str(path), f"JSONL that can be read ({error})") from None
    texts: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        id_, title, text = (row.get(key, "") for key in ("_id", "title", "text"))
        if "_id" not in row or not isinstance(text, str) or not isinstance(title or "", str):
            raise refuse(
                f"{parameter}: {path.name}", f"row {number}", "_id, text and maybe a title"
            )
        if str(id_) in texts:
            raise refuse(
                f"{parameter}: {path.name}", id_, f"each _id once; row {number} repeats it"
            )
        texts[str(id_)] = f"{title or ''} {text}".strip()
    return texts, sum(not text for text in texts.values())


def _judgements(parameter: str, folder: Path) -> Path:
    files = {path.stem: path for path in sorted(folder.glob("*.tsv"))}
    for split in (*SPLITS, *files):
        if split in files:
            return files[split]
    raise refuse(parameter, str(folder), "a folder with judgements, as test.tsv")


def _rows(parameter: str, path: Path) -> Iterable[tuple[str, str, float]]:
    content = own_tables.table(parameter, path)
    names = list(content.columns)
    try:
        if len(names) != 3 or names[2].lstrip("-").replace(".", "", 1).isdigit():
            raise ValueError
        grades = content[names[2]].astype(float)
    except ValueError:
        accepted = "columns query-id, corpus-id and a number, score, under a header line"
        raise refuse(f"{parameter}: {path.name}", ", ".join(names), accepted) from None
    return zip(content[names[0]], content[names[1]], grades, strict=True)


def drawn(parameter: str, folder: Path, count: int, most: int, seed: int = 0) -> Drawn:
    """Up to `count` judged queries with all their judged passages, followed by up to `most` passages in all, drawn at random.

    Queries that judged passages connect are of one document. Raises InputError for fewer than two queries.
    """
    collection = read(parameter, folder)
    judged = list(collection.grades)
    if len(judged) < 2:
        raise InputError(f"{parameter} = {folder.name}: at least two queries with a judgement")
    generator = np.random.default_rng(seed)
    chosen = [judged[n] for n in generator.permutation(len(judged))[:count]]
    numbers: dict[str, int] = {}
    relevant: list[dict[int, float]] = []
    for query in chosen:
        grades = collection.grades[query]
        relevant.append({numbers.setdefault(id_, len(numbers)): g for id_, g in grades.items()})
    others = [id_ for id_, text in collection.passages.items() if text and id_ not in numbers]
    places = np.sort(generator.permutation(len(others))[: max(0, most - len(numbers))])
    ids = [*numbers, *(others[place] for place in places)]
    passages = [collection.passages[id_] for id_ in ids]
    return Drawn([collection.queries[q] for q in chosen], passages, relevant, _connected(relevant))


def _connected(relevant: list[dict[int, float]]) -> np.ndarray:
    """Number of the group (queries,) of each query: those that share passages, directly or by others, unless a quarter of all do."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    queries = np.repeat(np.arange(len(relevant)), [len(grades) for grades in relevant])
    passages = np.concatenate([list(grades) for grades in relevant]) + len(relevant)
    size = int(passages.max()) + 1
    graph = coo_array((np.ones(len(queries)), (queries, passages)), shape=(size, size))
    units = connected_components(graph, directed=False)[1][: len(relevant)]
    # Where most are connected, there would be no interval at all.
    return units if 4 * np.bincount(units).max() <= len(units) else np.arange(len(units))
