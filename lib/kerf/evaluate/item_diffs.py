"""Which items two candidates treat differently: right for one of them alone, or farthest apart."""

from kerf.evaluate.bootstrap import MEANS
from kerf.evaluate.metrics import METRICS

LOOKED_AT = ("retrieval_recall_1", "last_word_accuracy", "cosine_mean", "kl_mean", "mrr")
BY_DOCUMENT = ("kl_mean",)  # a token says nothing to a reader: the mean of its document does
SHOWN = 5  # items in each direction


def item_diffs(a, b) -> list[dict]:
    """A row for each metric of LOOKED_AT: a_better and b_better of n (how many items), and `items`, those farthest apart.

    a, b: DataFrames of the same items (`kerf.evaluate.per_item_scores`). An item: document, text, a, b (the score of each), better.
    """
    return [
        _of(metric, a, b)
        for metric in LOOKED_AT
        if all((side.metric == MEANS[metric][0]).any() for side in (a, b))
    ]


def _of(metric: str, a, b) -> dict:
    table, score = MEANS[metric]
    own, other = (side[side.metric == table].reset_index(drop=True) for side in (a, b))
    pair = own.reindex(columns=["document", "text"]).assign(
        a=score(own).astype(float), b=score(other).astype(float)
    )
    if metric in BY_DOCUMENT:
        pair = (
            pair.groupby("document", sort=False)
            .agg({"text": "first", "a": "mean", "b": "mean"})
            .reset_index()
        )
    gain = (pair.b - pair.a) * (1 if METRICS[metric].better == "higher" else -1)
    order = gain.sort_values(kind="stable")
    apart = [*order[order < 0].head(SHOWN).index, *order[order > 0].tail(SHOWN).index[::-1]]
    items = [
        {
            "document": int(pair.document[i]),
            "text": _text(pair.text[i]),
            "a": float(pair.a[i]),
            "b": float(pair.b[i]),
            "better": "a" if gain[i] < 0 else "b",
        }
        for i in apart
    ]
    return {
        "metric": metric,
        "of": "documents" if metric in BY_DOCUMENT else "items",
        "n": len(pair),
        "a_better": int((gain < 0).sum()),
        "b_better": int((gain > 0).sum()),
        "items": items,
    }


def _text(value) -> str | None:
    return value if isinstance(value, str) else None
