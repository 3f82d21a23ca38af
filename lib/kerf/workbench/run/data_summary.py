"""What `kerf check` says about the data of an experiment: a line for each source, before work."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import regex

from kerf.core.errors import listed
from kerf.data import beir, corpora, datasets, own_files, own_ratings, segmentation
from kerf.data.bundled import TEXTS
from kerf.models import families
from kerf.workbench.run.experiment import Experiment

LOOKED_AT = 100_000  # characters whose scripts are counted
LEAST = 0.01  # share of the letters that a script needs to be named


def lines(experiment: Experiment, kind: str) -> Iterator[str]:
    """A line for each source that the experiment reads. Raises InputError for one that cannot be read."""
    calibration, spec, reads = (
        experiment.calibration,
        experiment.evaluation,
        families.FAMILIES[kind].READS,
    )
    seen = {corpora.family_of(name) for name in corpora.names_of(calibration.texts)}
    for name in corpora.names_of(calibration.texts):
        yield f"calibration: {_texts(name)}"
    for name in corpora.names_of(spec.texts) if "texts" in reads else ():
        yield f"evaluation: {_texts(name)}, {_saw(corpora.family_of(name), seen)}"
    for name in spec.retrieval if "retrieval" in reads else ():
        yield f"retrieval: {_collection(name, spec.queries, spec.corpus, seen)}"
    for name in spec.similarity if "similarity" in reads else ():
        texts, _, _, scores = own_ratings.rated(name)
        yield f"similarity: {corpora.label(name)}: {len(scores):,} pairs of {len(texts):,} texts"
    for name in spec.classification if "classification" in reads else ():
        classes = datasets.labelled(name, spec.labelled, spec.labelled)
        count = ", ".join(f"{n} {label}" for label, n in Counter(classes.labels).most_common(5))
        yield f"classification: {classes.name}: {len(classes.texts):,} texts ({count})"


def _texts(name: str) -> str:
    if name in TEXTS:
        documents = TEXTS[name].documents()
        return f"{name}: {len(documents):,} documents, {scripts(documents)}"
    found = own_files.read("texts", name)
    column = f" of column {found.column}" if found.column else ""
    unused = f"{found.empty:,} empty and {found.duplicates:,} duplicate ones left out"
    rows = f"{found.rows:,} rows{column}, {unused}: {len(found.texts):,} documents"
    return f"{corpora.label(name)}: {rows}, {scripts(found.texts)}"


def _saw(family: str, seen: set[str]) -> str:
    return f"family {family}, which calibration {'saw' if family in seen else 'did not see'}"


def _collection(name: str, queries: int, most: int, seen: set[str]) -> str:
    found = datasets.retrieval(name, queries, most=most)
    judged = sum(map(len, found.relevant))
    size = (
        f"{len(found.queries):,} queries, {len(found.passages):,} passages, {judged:,} judgements"
    )
    about = f"{found.name}: {size}, {scripts(found.queries)}, {_saw(found.family, seen)}"
    path = None if name in TEXTS else own_files.parse("evaluation.retrieval", name).path
    if not path or not beir.is_collection(path):
        return about
    collection = beir.read("evaluation.retrieval", path)
    unused = [f"{count:,} {what}" for what, count in collection.unused.items() if count]
    of_all = f"{len(collection.grades):,} judged queries on {len(collection.passages):,} passages"
    about += f" (drawn from {of_all}, {collection.split})"
    return f"{about}; not used: {listed(unused, 'and')}" if unused else about


def scripts(texts: Iterable[str]) -> str:
    """The scripts of texts that are not too rare, the most frequent first; looks at a sample of long ones."""
    texts = list(texts)
    order = np.random.default_rng(0).permutation(len(texts))[:200]
    sample = "".join(texts[n][: LOOKED_AT // 200] for n in order)
    letters = len(regex.findall(r"\p{L}", sample))
    counts = Counter(
        {name: len(script.findall(sample)) for name, script in segmentation.SCRIPTS.items()}
    )
    named = [name for name, count in counts.most_common() if count > LEAST * letters]
    return f"script {listed(named, 'and')}" if named else "no letters"
