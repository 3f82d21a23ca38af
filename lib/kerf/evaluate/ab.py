"""Comparison of two candidates on the same items: the difference b - a of every metric, its winner.

A metric has a winner where the bootstrap interval of the paired difference excludes zero; a yes/no metric has to pass
McNemar's exact test too, since few flips make the bootstrap overconfident. Figures of one process (memory, load time)
differ where their intervals, or the noise of the baseline around them, do not overlap. No multiplicity correction.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from kerf.evaluate import gates
from kerf.evaluate import stats as st
from kerf.evaluate.bootstrap import SCORES, YES_NO, BootstrapMetrics
from kerf.evaluate.causal_metrics import detectable
from kerf.evaluate.common import items_of
from kerf.evaluate.comparison_inputs import ComparisonInput, Key, check
from kerf.evaluate.fidelity import UNDEFINED, Row, without_interval
from kerf.evaluate.metrics import METRICS

EXACT = ("bytes_on_disk", "bits_per_weight", "linear_bits", "compression_ratio")
# Functions of other rows, so the conclusion leaves them out.
RESTATED: tuple[str, ...] = ("bits_per_weight", "compression_ratio", "human_spearman_loss")
RESTATED += ("retrieval_mrr_loss", "mrr_10_loss", "ndcg_10_loss", "mrr_loss", "ndcg_10_ratio")
RESTATED += (
    "drop_in_ndcg_10_loss",
    "drop_in_ndcg_10_ratio",
    "recall_100_loss",
    "probe_accuracy_loss",
)
SPREAD = ("probability_change_p95",)  # grows with damage as with gain, so nobody wins by it
APART = ("rss_peak_bytes", "load_seconds", "speedup")
ALPHA = 1 - st.LEVEL
SHOWN_ITEMS = ("retrieval_mrr", "last_word_accuracy", "cosine_mean", "kl_mean", "mrr")
BY_DOCUMENT = ("kl_mean",)  # readers see documents, since a single token means little
SHOWN = 5  # items in each direction


def compare(a: ComparisonInput, b: ComparisonInput) -> dict[str, Any]:
    """a, b: name, model, steps, run. metrics: a row each. changed: see `_item_diff`.

    Row: name, better (higher, lower), a, b, difference, low, high, n, how (paired, exact, apart, "" with a reason in `why`),
    winner (a, b, None), spread (over draws of the calibration
    sample, below which nobody wins), needed_n (items that would decide); of yes/no metrics a_only, b_only, mcnemar_p, detectable.
    Raises InputError if they cannot be paired.
    """
    check(a, b)
    resampled = [BootstrapMetrics(side.items) for side in (a, b)]
    shared = [key for key in {**a.rows, **a.values} if key in b.values and key[0] in METRICS]
    comparison: dict[str, Any] = {
        key: {"name": s.name, "model": s.model, "steps": s.steps, "run": s.origin.get("run")}
        for key, s in (("a", a), ("b", b))
    }
    comparison["metrics"] = [_row(key, a, b, resampled) for key in shared]
    diffs = [_item_diff(key, a.items, b.items) for key in shared if key[0] in SHOWN_ITEMS]
    return comparison | {"changed": [diff for diff in diffs if diff]}


def _row(key: Key, a: ComparisonInput, b: ComparisonInput, resampled: list) -> Row:
    name, domain = key
    metric, before, after = METRICS[name], a.values[key], b.values[key]
    row: Row = {"name": name, "domain": domain, "better": metric.better, "a": before, "b": after}
    row |= {"difference": None, "low": None, "high": None, "n": b.rows.get(key, {}).get("n")}
    row |= {"how": "", "why": "", "winner": None, "needed_n": None}
    row["spread"] = max(
        filter(None, (_spread(side.rows.get(key)) for side in (a, b))), default=None
    )
    if before is None or after is None:
        return row | {"why": UNDEFINED}
    row["difference"] = difference = after - before
    if name in EXACT:
        return row | {"how": "exact", "winner": _winner(name, difference, difference)}
    if name in APART:
        return row | _apart(key, a, b)
    if name in b.figures or not metric.gated:
        return row | {"why": "measured once" if metric.gated else "carries no interval"}
    return row | _paired(row, a, b, resampled)


def _spread(row: Row | None) -> float | None:
    """Range of a metric over candidates from several calibration samples; None where there is one."""
    values = [value for value in (row or {}).get("draws") or [] if value is not None]
    return max(values) - min(values) if len(values) > 1 else None


def _winner(name: str, low: float, high: float) -> str | None:
    if low <= 0 <= high or name in SPREAD:
        return None
    return "b" if (low > 0) == (METRICS[name].better == "higher") else "a"


def _paired(row: Row, a: ComparisonInput, b: ComparisonInput, resampled: list) -> Row:
    name, domain, n = row["name"], row["domain"], row["n"]
    if (q := METRICS[name].quantile) is not None:
        least = st.items_for_percentile(min(q, 1 - q))
        if least > n:
            return {"how": "paired", "why": "too few items for a percentile", "needed_n": least}
    before, after = (metrics.of(name, domain) for metrics in resampled)
    if before is None or after is None:
        return {"why": "the run keeps no scores of its items"}
    difference = after - before
    low, high = difference.interval()
    if low is None or high is None:
        return without_interval(len(difference.jackknife), n)
    paired = {"how": "paired", "low": low, "high": high, "winner": _winner(name, low, high)}
    if row["spread"] is not None and abs(row["difference"]) <= row["spread"]:
        return paired | {"winner": None}
    if low <= 0 <= high:
        gate = {"metric": name, "op": ">" if row["difference"] > 0 else "<", "threshold": 0}
        measured = row | paired | {"value": row["difference"]}
        paired["needed_n"] = gates.judge_gate(gate, "", measured)["needed_n"]
    scores = METRICS[name].scores
    if not scores or scores[1] not in YES_NO:
        return paired
    tables = [items_of(side.items, scores[0], domain) for side in (a, b)]
    right = [SCORES[scores[1]](table).to_numpy(bool) for table in tables]
    return paired | _mcnemar(right[0], right[1], paired.get("needed_n"))


def _mcnemar(a: np.ndarray, b: np.ndarray, needed: int | None) -> Row:
    """McNemar's test, which a winner has to pass. needed: items that the interval alone needs."""
    only_a, only_b, p = st.mcnemar(a, b)
    n, flips = len(a), only_a + only_b
    test = {"a_only": only_a, "b_only": only_b, "mcnemar_p": p, "detectable": detectable(n, flips)}
    if p <= ALPHA:
        return test
    if only_a == only_b:
        return test | {"winner": None, "needed_n": None}
    # With the same shares: chi-square above 3.84, and the six flips that p < 0.05 needs.
    decided = math.ceil(n * max(3.84 * flips / (only_a - only_b) ** 2, 6 / flips))
    return test | {"winner": None, "needed_n": max(decided, needed or 0)}


def _apart(key: Key, a: ComparisonInput, b: ComparisonInput) -> Row:
    if a.origin.get("machine") != b.origin.get("machine"):
        return {"why": "measured on another machine, or with other threads"}
    before, after = _span(a.rows[key]), _span(b.rows[key])
    if before is None or after is None:
        return {"why": "measured once"}
    low, high = after[0] - before[1], after[1] - before[0]
    return {"how": "apart", "low": low, "high": high, "winner": _winner(key[0], low, high)}


def _span(row: Row) -> tuple[float, float] | None:
    """Range of the true value: its interval, or the value plus and minus the baseline's noise."""
    if row["low"] is not None and row["high"] is not None:
        return row["low"], row["high"]
    noise = row.get("noise") or {}
    if noise.get("low") is None or noise.get("high") is None:
        return None
    width = noise["high"] - noise["low"]
    return row["value"] - width, row["value"] + width


def _item_diff(key: Key, a: pd.DataFrame, b: pd.DataFrame) -> Row:
    """a_better and b_better of n items, and the most different `items`; empty if a side has no scores."""
    metric, domain = key
    group, score = METRICS[metric].scores or ("", "")
    before, after = (items_of(side, group, domain).reset_index(drop=True) for side in (a, b))
    if before.empty or after.empty:
        return {}
    old, new = (SCORES[score](side).astype(float) for side in (before, after))
    pair = before.reindex(columns=["document", "text"]).assign(a=old, b=new)
    of = "documents" if metric in BY_DOCUMENT else "items"
    if of == "documents":
        documents = pair.groupby("document", sort=False)
        pair = documents.agg({"text": "first", "a": "mean", "b": "mean"}).reset_index()
    gain = (pair.b - pair.a) * (1 if METRICS[metric].better == "higher" else -1)
    order = gain.sort_values(kind="stable")
    items = []
    for i in [*order[order < 0].head(SHOWN).index, *order[order > 0].tail(SHOWN).index[::-1]]:
        text = pair.text[i] if isinstance(pair.text[i], str) else None
        item = {"document": int(pair.document[i]), "text": text, "a": float(pair.a[i])}
        items.append(item | {"b": float(pair.b[i]), "better": "a" if gain[i] < 0 else "b"})
    better = {"a_better": int((gain < 0).sum()), "b_better": int((gain > 0).sum())}
    return {"metric": metric, "domain": domain, "of": of, "n": len(pair), **better, "items": items}


def conclusion(comparison: dict[str, Any]) -> str:
    """Who wins on what, and what is undecided, in sentences."""
    rows, lines = [row for row in comparison["metrics"] if row["name"] not in RESTATED], []
    for side in ("a", "b"):
        won = [labelled(row) for row in rows if row["winner"] == side]
        best = "; ".join(won) or "nothing that could be told"
        lines.append(f"{side.upper()} ({comparison[side]['name']}) wins on {best}.")
    paired = [row for row in rows if row["how"] == "paired"]
    open_rows = [row for row in paired if not row["winner"]]
    lines += [f"{labelled(row)}: {undecided(row)}." for row in open_rows]
    chance = f"{len(paired) * ALPHA:.1f} would seem to differ by chance if the two were the same"
    return "\n".join([*lines, f"Of {len(paired)} paired metrics, {chance}."])


def labelled(row: Row) -> str:
    """Label of a row's metric, with its domain."""
    label = METRICS[row["name"]].label
    return f"{label} on {row['domain']}" if row.get("domain") else label


def undecided(row: Row) -> str:
    """Why a paired metric has no winner, and how many items would decide, to two digits."""
    if row["low"] == row["high"] == 0:
        return f"the same on all {row['n']:,} items"
    if row.get("spread") and abs(row["difference"]) <= row["spread"]:
        return "a tie: another draw of the calibration sample changes it as much"
    if row["name"] in SPREAD and not row["needed_n"]:
        return "larger by gain or by damage, so nobody wins"
    needed = row["needed_n"] and float(f"{row['needed_n']:.2g}")
    would = f"; about {max(needed, row['n'] + 1):,.0f} would do" if needed else ""
    return f"cannot tell with {row['n']:,} items{would}"
