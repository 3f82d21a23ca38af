"""Data with judgements, for evaluation only: pairs rated by people, questions with their passages, texts with a class.

Besides the collections that come with Kerf: folders in BEIR's format and tables of one's own.
"""

import re
from dataclasses import dataclass, replace
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from kerf.core.errors import nearest, refuse
from kerf.data import beir, bundled, corpora, downloads, own_files, own_ratings
from kerf.data.overlap import without_overlap

TASKS = ("piqa", "siqa", "commonsenseqa", "openbookqa", "mmlu")
SHORT = 48  # words of a labelled text that are read: a lead paragraph tells its class


@dataclass(frozen=True)
class Retrieval:
    """Queries, passages, and the judged passages of each query: relevant[query][passage] = grade above 0.

    documents: (queries,) number of the document that a query is about, the unit of resampling.
    """

    name: str
    family: str
    queries: list[str]
    passages: list[str]
    relevant: list[dict[int, float]]
    documents: ndarray

    def only(self, queries: list[bool], passages: list[bool]) -> "Retrieval":
        """The collection without some queries and passages, and without queries that have no judged passage left."""
        numbers = np.cumsum(passages) - 1
        relevant = [
            {int(numbers[passage]): grade for passage, grade in grades.items() if passages[passage]}
            for grades in self.relevant
        ]
        stay = [n for n, known in enumerate(queries) if known and relevant[n]]
        return replace(
            self,
            queries=[self.queries[n] for n in stay],
            passages=list(compress(self.passages, passages)),
            relevant=[relevant[n] for n in stay],
            documents=self.documents[stay],
        )


@dataclass(frozen=True)
class Labelled:
    """Texts with a class each; the first `train` of them are for fitting."""

    name: str
    family: str
    texts: list[str]
    labels: list[str]
    train: int


def retrieval(name: str, count: int, seed: int = 0, most: int = 5000) -> Retrieval:
    """`count` queries of a collection, or of a text source, with the passages that answer them. Raises InputError for fewer, or an
    unknown name.

    Of a folder in BEIR's format: `count` queries, or all if there are fewer, and up to `most` passages, of which those that are
    judged stay in any case.
    """
    if name not in bundled.TEXTS:
        what = "a folder in BEIR's format, a text file"
        known = f"{what}, or a known name: {nearest(name, bundled.TEXTS)}"
        source = own_files.parse("evaluation.retrieval", name, known)
        if beir.is_collection(source.path):
            columns = beir.drawn("evaluation.retrieval", source.path, count, most, seed)
            return Retrieval(source.label, source.family, *columns)
    texts = {relative: corpora.digest(relative) for relative in corpora.relatives(name)}
    rows = corpora.remembered("collection", {"name": name, "texts": texts}, lambda: _unseen(name))
    corpora.check_count("evaluation.queries", count, 2, len(rows), "queries", name)
    # In random order, since candidates encode the first passages alone, and sources stand in groups.
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    numbers: dict[str, int] = {}
    groups: dict[str, int] = {}
    queries, relevant, documents = [], [], []
    for group, query, passage in (rows[index] for index in chosen):
        queries.append(query)
        relevant.append({numbers.setdefault(passage, len(numbers)): 1.0})
        documents.append(groups.setdefault(group, len(groups)))
    name, family = corpora.label(name), corpora.family_of(name)
    return Retrieval(name, family, queries, list(numbers), relevant, np.array(documents))


def _unseen(name: str) -> list[tuple[str, str, str]]:
    """Rows (group, query, passage) of the evaluation part whose passage shares no text with the calibration part."""
    rows = _RETRIEVAL[name]() if name in _RETRIEVAL else _cloze(name)
    calibration = corpora.documents(corpora.relatives(name), "calibration")
    unseen = set(without_overlap([row[2] for row in rows], calibration))
    return [row for row in rows if row[2] in unseen]


def _questions() -> list[tuple[str, str, str]]:
    """Article, question and passage of the evaluation part."""
    return [tuple(row) for row in _of_evaluation(bundled.articles())]


def _docs() -> list[tuple[str, str, str]]:
    """Module, summary line and rest of a docstring of the evaluation part, which is long enough to be found."""
    rows = {row.rest: row for row in reversed(_of_evaluation(bundled.modules())) if _is_long(row)}
    return [tuple(row) for row in {row.summary: row for row in rows.values()}.values()]


def _is_long(row: bundled.Docstring) -> bool:
    return 4 <= len(row.summary.split()) <= 30 and len(row.rest.split()) >= 20


def _of_evaluation(documents: dict[str, list]) -> list:
    return [
        row
        for text, rows in documents.items()
        if corpora.part_of(text) == "evaluation"
        for row in rows
    ]


def _cloze(name: str) -> list[tuple[str, str, str]]:
    """Of a source without judgements, inverse-cloze pairs: the first words of a stretch of text have to find the next ones."""
    rows = corpora.query_passage_pairs(name, "evaluation")
    return [(str(number), query, passage) for query, passage, number in rows]


_RETRIEVAL = {"questions": _questions, "docs": _docs}
_CLASSES = ("bbc",)


def labelled(name: str, train: int, test: int, seed: int = 0) -> Labelled:
    """Texts with a class, `train` for fitting and `test` for scoring, in random order. Raises InputError for fewer.

    Of a table of one's own with fewer, both get the same share of what there is.
    """
    if name in _CLASSES:
        known, family = dict(bundled.bbc()), corpora.family_of(name)
    else:
        name, family, known = own_ratings.classes(name)
        share = min(1.0, len(known) / (train + test))
        train, test = int(train * share), int(test * share)
    rows = [(" ".join(text.split()[:SHORT]), label) for text, label in known.items()]
    corpora.check_count("evaluation.labelled", train + test, 2, len(rows), "labelled texts", name)
    chosen = np.random.default_rng(seed).permutation(len(rows))[: train + test]
    texts, labels = zip(*(rows[index] for index in chosen), strict=True)
    if len(set(labels[:train])) < 2:
        accepted = f"texts of at least two classes to fit a probe to; {train} of {name} have one"
        raise refuse("evaluation.labelled", train, accepted)
    return Labelled(name, family, list(texts), list(labels), train)


class Choice(NamedTuple):
    """A question of a task, what may follow it, and the index of the right answer."""

    prompt: str
    choices: list[str]
    answer: int

    @property
    def text(self) -> str:
        """The question with the right answer."""
        return f"{self.prompt}{self.choices[self.answer]}"


def task(name: str, count: int, seed: int = 0) -> list[Choice]:
    """`count` questions of a task's evaluation part, or all if there are fewer; those without one right answer are left out."""
    if name not in TASKS:
        raise refuse("evaluation.tasks", name, nearest(name, TASKS))
    rows = {bundled.situation(row): _choice(row) for row in bundled.task_rows(name)}
    own = [text for text in rows if corpora.part_of(text) == "evaluation"]
    apart = without_overlap(own, corpora.documents("everyday", "calibration"))
    known = [row for text in apart if (row := rows[text])]
    return [known[i] for i in np.random.default_rng(seed).permutation(len(known))[:count]]


def _choice(row: dict) -> Choice | None:
    """The options stand in lines as `A. text`, and the answer is one of them."""
    options = [option.strip() for option in re.split(r"(?m)^(?=[A-Z]\. )", row["options"])]
    options = [option for option in options if option]
    if options.count(row["answer"].strip()) != 1 or len(options) < 2:
        return None
    question = f"{row.get('passage', '')} {row['question']}".strip()
    choices = [" " + option.partition(". ")[2] for option in options]
    return Choice(f"Question: {question}\nAnswer:", choices, options.index(row["answer"].strip()))


def human_pairs() -> dict[str, own_ratings.Pairs]:
    """Pairs of `lee` (50 news items), `wordsim` and `simlex` (words): name -> (texts, left index, right index, score)."""
    folder = downloads.fetch(downloads.TEXTS)
    items = bundled.lines((folder / "lee.txt").read_text("latin-1"))
    scores = np.loadtxt(folder / "lee_similarities.txt")
    upper = np.triu_indices(len(items), 1)  # the lower triangle is empty
    left, right = (indices.tolist() for indices in upper)
    pairs = {"lee": (items, left, right, scores[upper].tolist())}
    for name, file in (("wordsim", "wordsim353.tsv"), ("simlex", "simlex999.tsv")):
        lines = bundled.lines((folder / file).read_text("utf-8"))
        rows = [line.split("\t") for line in lines if not line.startswith("#")]
        words = list(dict.fromkeys(word for row in rows for word in row[:2]))
        index = {word: number for number, word in enumerate(words)}
        left, right = ([index[row[side]] for row in rows] for side in (0, 1))
        pairs[name] = (words, left, right, [float(row[2]) for row in rows])
    return pairs
