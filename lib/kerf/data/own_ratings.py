"""Tables of one's own with judgements: pairs of texts with a score, and texts with a class."""

import numpy as np

from kerf.core.cache import digest as digest_of
from kerf.core.errors import refuse
from kerf.data import own_files, own_tables

Pairs = tuple[list[str], list[int], list[int], list[float]]  # texts, left index, right index, score
RATED = (("text1", "text2", "score"), ("sentence1", "sentence2", "score"))  # columns of a table
MOST = 2000  # pairs of a table that are measured, drawn at random
CLASSES = (("text", "label"),)


def classes(name: str) -> tuple[str, str, dict[str, str]]:
    """Label, family, and the class of every text of a table. Raises InputError for a text with several classes."""
    parameter = "evaluation.classification"
    source = own_files.parse(parameter, name, "bbc, or a table with text and label")
    table, (text, label) = own_tables.columns(parameter, source.path, CLASSES)
    rows = table[[text, label]].dropna().astype(str)
    rows = rows[(rows[text].str.strip() != "") & (rows[label].str.strip() != "")].drop_duplicates()
    if twice := int(rows[text].duplicated().sum()):
        accepted = f"a table with one class for each text; {twice} stand there with several"
        raise refuse(parameter, source.path.name, accepted)
    return source.label, source.family, dict(zip(rows[text], rows[label], strict=True))


def rated(name: str) -> Pairs:
    """Pairs of texts with a score, at most MOST, of a table of one's own. Raises InputError for scores that are no finite numbers."""
    parameter = "evaluation.similarity"
    source = own_files.parse(parameter, name, "a table with two texts and a score")
    table, (left, right, score) = own_tables.columns(parameter, source.path, RATED)
    rows = table[[left, right, score]].replace("", None).dropna()
    try:
        scores = rows[score].astype(float).to_numpy()
    except (ValueError, TypeError):
        scores = np.array([np.nan])
    if not np.isfinite(scores).all():
        raise refuse(parameter, source.path.name, f"finite numbers in its column {score}")
    if len(set(scores)) < 2:
        accepted = f"at least two pairs with unlike scores in its column {score}"
        raise refuse(parameter, source.path.name, accepted)
    if len(rows) > MOST:  # statistics of pairs grow with their square
        kept = np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST])
        rows, scores = rows.iloc[kept], scores[kept]
    sides = [rows[side].astype(str).tolist() for side in (left, right)]
    index = {text: number for number, text in enumerate(dict.fromkeys(sides[0] + sides[1]))}
    return list(index), *([index[t] for t in side] for side in sides), scores.tolist()


def digest(name: str) -> str:
    """Digest of a collection or a table of one's own, for cache keys: that of its files."""
    path = own_files.parse("evaluation", name).path
    return digest_of(own_tables.content_digests(path))
