"""Per-item scores of a comparison, as a table by which `kerf.evaluate.ab` pairs two candidates.

One row per item: `metric` (its group), `document` (the unit of resampling), `text` (for readers),
`baseline` and `candidate` (scores). Pairs of texts have `left` and `right`, numbers of texts, and
`score`, the human rating. The groups of language models are in `kerf.evaluate.causal_metrics`.
"""

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from kerf.evaluate.fidelity import overlap

if TYPE_CHECKING:
    import pyarrow as pa

NUMBERS = ("document", "left", "right", "position")
KNOWN_BY = 100  # characters of a long text


def write_encoder(path: Path, everything: Any, before: dict, after: dict, ranks: ndarray) -> None:
    """Write the table of an encoder.

    everything: `kerf.evaluate.encoder.Texts`. before, after: embeddings (items, features) of length
    one by name. ranks: reciprocal ranks (queries, 2), baseline first.
    """
    texts = {name: everything.all[where] for name, where in everything.where.items()}
    sentence = {"document": everything.documents["sentences"], "text": texts["sentences"]}
    passages = {"document": everything.documents["passages"]}
    cosine, wiki = ((before[name] * after[name]).sum(1) for name in ("sentences", "passages"))
    same = overlap(before["sentences"], after["sentences"])
    brief = [shorten(text, KNOWN_BY, placeholder=" …") for text in texts["passages"]]
    reciprocal = {"candidate": ranks[:, 1], "baseline": ranks[:, 0], "text": texts["queries"]}

    def pairs(metric: str, name: str, left: ndarray, right: ndarray, **more: Any) -> "pa.Table":
        models = before[name], after[name]
        old, new = (np.einsum("pf,pf->p", rows[left], rows[right]) for rows in models)
        return group(metric, baseline=old, candidate=new, left=left, right=right, **more)

    groups = [
        group("cosine", candidate=cosine, baseline=np.ones(len(cosine)), **sentence),
        group("cosine_wiki", candidate=wiki, baseline=np.ones(len(wiki)), **passages, text=brief),
        group("neighbours", candidate=same, baseline=np.ones(len(same)), **sentence),
        group("reciprocal_rank", **reciprocal, **passages),
        pairs("similarity", "sentences", *np.triu_indices(len(cosine), 1)),
    ]
    for name, (left, right, scores) in everything.human.items():
        brief = [shorten(text, KNOWN_BY // 2, placeholder=" …") for text in texts[name]]
        both = [f"{brief[a]} | {brief[b]}" for a, b in zip(left, right, strict=True)]
        groups.append(pairs(f"human_{name}", name, left, right, score=scores, text=both))
    write(path, groups)


def group(metric: str, **columns: Any) -> "pa.Table":
    """Rows of one metric as a table. columns: (items,) each; scores become float32."""
    import pyarrow as pa

    size = len(next(iter(columns.values())))
    arrays = {"metric": pa.array([metric] * size, pa.string()).dictionary_encode()}
    for name, values in columns.items():
        if name == "text":
            arrays[name] = pa.array(values, pa.string()).dictionary_encode()
        else:
            dtype = np.int32 if name in NUMBERS else np.float32
            arrays[name] = pa.array(np.asarray(values).astype(dtype))
    return pa.table(arrays)


def write(path: Path, groups: "list[pa.Table]") -> None:
    """Write groups as one table; a column that a group does not have is empty there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables(groups, promote_options="default").unify_dictionaries()
    pq.write_table(table, path, compression="zstd")
