"""The scores of every item of a comparison, as a table: what two candidates are paired by later (`kerf.evaluate.ab`).

A row an item: `metric` (the group of rows it belongs to), `document` (what is drawn whole), `text` (what a reader
knows it by), `baseline` and `candidate` (the score of each). Pairs of texts have `left` and `right`, their numbers,
and `score`, what people gave them. What language models add stands in `kerf.evaluate.causal_metrics`.
"""

from pathlib import Path
from textwrap import shorten

import numpy as np

from kerf.evaluate.fidelity import overlap

NUMBERS = ("document", "left", "right", "position")
KNOWN_BY = 100  # characters of a long text


def write_encoder(path: Path, everything, before: dict, after: dict, ranks: np.ndarray) -> None:
    """Write the table of an encoder.

    before, after: name -> embeddings (items, features) of length one; ranks: reciprocal ranks (queries, 2), baseline first.
    """
    texts = {name: everything.all[where] for name, where in everything.where.items()}
    sentences, passages = (everything.documents[name] for name in ("sentences", "passages"))
    cosine, wiki = ((before[name] * after[name]).sum(1) for name in ("sentences", "passages"))
    left, right = np.triu_indices(len(sentences), 1)
    kept = overlap(before["sentences"], after["sentences"])
    write(
        path,
        [
            group(
                "cosine",
                candidate=cosine,
                baseline=np.ones(len(cosine)),
                document=sentences,
                text=texts["sentences"],
            ),
            group(
                "cosine_wiki",
                candidate=wiki,
                baseline=np.ones(len(wiki)),
                document=passages,
                text=_brief(texts["passages"]),
            ),
            group(
                "neighbours",
                candidate=kept,
                baseline=np.ones(len(kept)),
                document=sentences,
                text=texts["sentences"],
            ),
            group(
                "reciprocal_rank",
                candidate=ranks[:, 1],
                baseline=ranks[:, 0],
                document=passages,
                text=texts["queries"],
            ),
            _pairs("similarity", before["sentences"], after["sentences"], left, right),
            *(
                _pairs(
                    f"human_{name}",
                    before[name],
                    after[name],
                    left,
                    right,
                    score=scores,
                    text=_both(texts[name], left, right),
                )
                for name, (left, right, scores) in everything.human.items()
            ),
        ],
    )


def _pairs(metric, before, after, left, right, **more):
    similarity = [np.einsum("pf,pf->p", rows[left], rows[right]) for rows in (before, after)]
    return group(
        metric, baseline=similarity[0], candidate=similarity[1], left=left, right=right, **more
    )


def _brief(texts: list[str]) -> list[str]:
    return [shorten(text, KNOWN_BY, placeholder=" …") for text in texts]


def _both(texts: list[str], left, right) -> list[str]:
    brief = [shorten(text, KNOWN_BY // 2, placeholder=" …") for text in texts]
    return [f"{brief[a]} | {brief[b]}" for a, b in zip(left, right, strict=True)]


def group(metric: str, **columns):
    """Rows of one metric as a table. columns: (items,) each; scores become float32."""
    import pyarrow as pa

    made = {}
    for name, values in columns.items():
        if name == "text":
            made[name] = pa.array(values, pa.string()).dictionary_encode()
        else:
            made[name] = pa.array(
                np.asarray(values).astype(np.int32 if name in NUMBERS else np.float32)
            )
    size = len(next(iter(made.values())))
    return pa.table({"metric": pa.array([metric] * size, pa.string()).dictionary_encode(), **made})


def write(path: Path, groups: list) -> None:
    """Write groups as one table; a column that a group does not have is empty there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.concat_tables(groups, promote_options="default").unify_dictionaries(),
        path,
        compression="zstd",
    )
