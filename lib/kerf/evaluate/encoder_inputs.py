"""The texts that encoders are measured on: sentences by source, collections for retrieval, classes, and human-rated pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from kerf.config import Evaluation
from kerf.data import corpora, datasets, own_ratings
from kerf.evaluate import common, retrieval
from kerf.models.families import causal, lengths

Key = tuple[str, str]  # role of a set of texts, and the name of its source
BASELINE_ONLY = ("other_passages", "fitted")  # roles that no candidate encodes


@dataclass(frozen=True)
class EncoderInputs:
    """All texts, those that the baseline alone encodes last, and the slice of the list that each set is.

    Roles: sentences; queries; passages (those that candidates encode too) and other_passages; tested and fitted, texts with a
    class; rated, texts of human-rated pairs, and compared, those of a user's own.
    """

    all: list[str]
    where: dict[Key, slice]
    documents: dict[Key, ndarray]  # of each sentence, and of each query
    human: dict[Key, tuple[ndarray, ndarray, list[float]]]  # left, right, score of each pair
    relevant: dict[str, list[dict[int, float]]]  # passages of each query, by collection
    labels: dict[Key, list[str]]
    left_out: int = 0  # texts without any token

    @property
    def shared(self) -> int:
        """Number of texts that candidates encode."""
        return sum(
            s.stop - s.start for (role, _), s in self.where.items() if role not in BASELINE_ONLY
        )

    def names(self, role: str) -> list[str]:
        """Sources that have a set of that role."""
        return [name for own, name in self.where if own == role]

    def roles(self) -> list[str]:
        """query, document or "" (neither) of every text, for a model with prompts."""
        kinds = {"queries": "query", "passages": "document", "other_passages": "document"}
        return [
            kinds.get(role, "")
            for (role, _), s in self.where.items()
            for _ in range(s.start, s.stop)
        ]


@common.cached
def gather(folder: Path, spec: Evaluation) -> EncoderInputs:
    """All sets of texts that have a token. Raises InputError for too few."""
    tokenizer = causal.tokenizer(folder)
    sets: dict[Key, Sequence[str]] = {}
    documents: dict[Key, ndarray] = {}
    human, relevant, labels, asked = {}, {}, {}, 0
    for source in corpora.names_of(spec.texts):
        name, sampled = corpora.label(source), corpora.evaluation_sentences(source, spec.sentences)
        asked += len(sampled[0])
        rows = lengths.rows_with_tokens(tokenizer, "evaluation.sentences", *sampled)
        sets["sentences", name], documents["sentences", name] = rows[0], np.array(rows[1])
    pairs = {("rated", name): rated for name, rated in datasets.human_pairs().items()}
    pairs |= {("compared", corpora.label(n)): own_ratings.rated(n) for n in spec.similarity}
    for key, rated in pairs.items():
        sets[key], left, right, scores = _known_pairs(tokenizer, *rated)
        human[key] = (np.array(left), np.array(right), scores)
    for source in spec.retrieval:
        collection = datasets.retrieval(source, spec.queries, most=spec.corpus)
        collection, name = common.readable(collection, tokenizer), collection.name
        sets["queries", name], documents["queries", name] = collection.queries, collection.documents
        sets["passages", name] = collection.passages[: spec.passages]
        sets["other_passages", name] = collection.passages[spec.passages :]
        relevant[name] = collection.relevant
    for source in spec.classification:
        classes = datasets.labelled(source, spec.labelled, spec.labelled)
        name = classes.name
        for role, part in (
            ("fitted", slice(classes.train)),
            ("tested", slice(classes.train, None)),
        ):
            rows = lengths.rows_with_tokens(
                tokenizer, "evaluation.labelled", classes.texts[part], classes.labels[part]
            )
            sets[role, name], labels[role, name] = rows
    ordered = sorted(sets, key=lambda key: key[0] in BASELINE_ONLY)
    ends = zip(ordered, accumulate(len(sets[key]) for key in ordered), strict=True)
    where = {key: slice(end - len(sets[key]), end) for key, end in ends}
    everything = [text for key in ordered for text in sets[key]]
    left_out = asked - sum(len(rows) for (role, _), rows in sets.items() if role == "sentences")
    return EncoderInputs(everything, where, documents, human, relevant, labels, left_out)


def _known_pairs(
    tokenizer: Any, texts: list[str], left: list[int], right: list[int], scores: list[float]
) -> tuple[list[str], list[int], list[int], list[float]]:
    """Human-rated pairs of texts that both have a token, as indices into the remaining texts."""
    known = np.array(lengths.have_tokens(tokenizer, texts))
    both, index = known[left] & known[right], np.cumsum(known) - 1
    remaining = [text for text, has_token in zip(texts, known, strict=True) if has_token]
    pairs = (index[left], index[right], np.array(scores))
    return remaining, *(column[both].tolist() for column in pairs)


def about(inputs: EncoderInputs) -> str:
    """One line that describes the evaluation texts."""
    sizes = {key: where.stop - where.start for key, where in inputs.where.items()}
    parts = [
        f"{sizes['sentences', name]} sentences of {name}" for name in inputs.names("sentences")
    ]
    for name in inputs.names("queries"):
        passages = sizes["passages", name] + sizes["other_passages", name]
        own = len(retrieval.within(inputs.relevant[name], sizes["passages", name]))
        about = f"{own} of them on {sizes['passages', name]} that the candidate encodes"
        parts.append(f"{sizes['queries', name]} queries on {passages} passages of {name}, {about}")
    parts += [
        f"{sizes['tested', name]} texts with a class of {name}" for name in inputs.names("tested")
    ]
    pairs = sum(len(scores) for _, _, scores in inputs.human.values())
    return f"{'; '.join(parts)}; {pairs} human-rated pairs{lengths.left_out_note(inputs.left_out)}"


def documents(inputs: EncoderInputs) -> int:
    """Number of independent documents, the units of the bootstrap."""
    return min(len(np.unique(owners)) for owners in inputs.documents.values())
