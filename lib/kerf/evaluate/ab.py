"""Two candidates against each other, on the same items: the paired difference of every metric, who wins on what.

The difference is always b - a. Its interval comes from drawing the same documents for both; b or a wins where it
leaves out zero. A yes/no metric has to pass McNemar's exact test too: with a handful of flips drawing documents is
too sure of itself. Figures of one process (memory, load time) are not paired: they count as different where their
intervals, or the noise of the baseline around them, do not meet. Not here: correcting for how many metrics are
looked at (the conclusion says how many would seem to differ by chance), finding and reading runs
(`kerf.workbench.run.history`), and what may be paired (`kerf.evaluate.comparison_inputs`).
"""

import math

from kerf.evaluate import gates
from kerf.evaluate import stats as st
from kerf.evaluate.bootstrap import MEANS, QUANTILES, RIGHT, BootstrapMetrics
from kerf.evaluate.causal_metrics import detectable
from kerf.evaluate.comparison_inputs import ComparisonInput, check
from kerf.evaluate.fidelity import UNDEFINED, without_interval
from kerf.evaluate.item_diffs import item_diffs
from kerf.evaluate.metrics import METRICS

EXACT = ("bytes_on_disk", "bits_per_weight", "linear_bits", "compression_ratio")
RESTATED = (
    "human_spearman_loss",
    "retrieval_mrr_loss",
    "ndcg_10_loss",
    "mrr_loss",
    "bits_per_weight",
    "compression_ratio",
)  # of what another row says
SPREAD = ("probability_change_p95",)  # grows with damage as with gain, so nobody wins by it
APART = ("rss_peak_bytes", "load_seconds", "speedup")
ALPHA = 1 - st.LEVEL


def compare(a: ComparisonInput, b: ComparisonInput) -> dict:
    """a, b: name, model, steps, run. metrics: a row each. changed: items that only one of them gets right, and the farthest apart.

    A row: name, better (higher, lower), a, b, difference, low, high, n, how (paired, exact, apart, or "" with `why`
    nothing can be told), winner (a, b or None), needed_n (items that would decide), and of yes/no items a_only, b_only,
    mcnemar_p, detectable. Raises InputError for candidates of other models, or measured on other items.
    """
    check(a, b)
    drawn = [BootstrapMetrics(side.items) for side in (a, b)]
    names = [
        name
        for name in {**a.rows, **a.figures}
        if name in {**b.rows, **b.figures} and name in METRICS
    ]
    rows = [_row(name, a, b, drawn) for name in names]
    told = {
        key: {
            "name": side.name,
            "model": side.model,
            "steps": side.steps,
            "run": side.origin.get("run"),
        }
        for key, side in (("a", a), ("b", b))
    }
    return {**told, "metrics": rows, "changed": item_diffs(a.items, b.items)}


def _row(name: str, a: ComparisonInput, b: ComparisonInput, drawn: list[BootstrapMetrics]) -> dict:
    before, after = (
        {**side.figures, **{key: row["value"] for key, row in side.rows.items()}}[name]
        for side in (a, b)
    )
    difference = None if None in (before, after) else after - before
    row = {
        "name": name,
        "better": METRICS[name].better,
        "a": before,
        "b": after,
        "difference": difference,
        "low": None,
        "high": None,
        "n": b.rows.get(name, {}).get("n"),
        "how": "",
        "why": "",
        "winner": None,
        "needed_n": None,
    }
    if difference is None:
        return row | {"why": UNDEFINED}
    if name in EXACT:
        return row | {"how": "exact", "winner": _winner(row, row["difference"], row["difference"])}
    if name in APART:
        return row | _apart(row, a, b)
    if name in b.figures or not METRICS[name].gated:
        return row | {"why": "measured once" if METRICS[name].gated else "carries no interval"}
    return row | _paired(row, a, b, drawn)


def _paired(
    row: dict, a: ComparisonInput, b: ComparisonInput, drawn: list[BootstrapMetrics]
) -> dict:
    name, n = row["name"], row["n"]
    least = (
        max(n, st.items_for_percentile(min(QUANTILES[name][2], 1 - QUANTILES[name][2])))
        if name in QUANTILES
        else n
    )
    if least > n:
        return {"how": "paired", "why": "too few items for a percentile", "needed_n": least}
    sides = [side.of(name) for side in drawn]
    if None in sides:
        return {"why": "the run keeps no scores of its items"}
    difference = sides[1] - sides[0]
    low, high = difference.interval()
    if low is None:
        return without_interval(len(difference.left_out), n)
    found = row | {"how": "paired", "low": low, "high": high, "winner": _winner(row, low, high)}
    if low <= 0 <= high:
        zero = {"metric": name, "op": ">" if row["difference"] > 0 else "<", "threshold": 0}
        found["needed_n"] = gates.judge_gate(zero, "", found | {"value": row["difference"]})[
            "needed_n"
        ]
    return found | (_flips(found, a, b) if name in RIGHT else {})


def _winner(row: dict, low: float, high: float) -> str | None:
    if low <= 0 <= high or row["name"] in SPREAD:
        return None
    return "b" if (low > 0) == (row["better"] == "higher") else "a"


def _flips(row: dict, a: ComparisonInput, b: ComparisonInput) -> dict:
    """McNemar's test; what it does not confirm, nobody has won."""
    table, score = MEANS[row["name"]]
    right = [score(side.items[side.items.metric == table]).to_numpy(bool) for side in (a, b)]
    only_a, only_b, p = st.mcnemar(*right)
    n = len(right[0])
    told = {
        "a_only": only_a,
        "b_only": only_b,
        "mcnemar_p": p,
        "detectable": detectable(n, only_a + only_b),
    }
    if p <= ALPHA:
        return told
    needed = None if only_a == only_b else max(_needed(n, only_a, only_b), row["needed_n"] or 0)
    return told | {"winner": None, "needed_n": needed}


def _needed(n: int, only_a: int, only_b: int) -> int:
    """Items for McNemar's test if the shares stayed: chi-square above 3.84, and the six flips below which p stays over 0.05."""
    flips = only_a + only_b
    return math.ceil(n * max(3.84 * flips / (only_a - only_b) ** 2, 6 / flips))


def _apart(row: dict, a: ComparisonInput, b: ComparisonInput) -> dict:
    if a.origin.get("machine") != b.origin.get("machine"):
        return {"why": "measured on another machine, or with other threads"}
    spans = [_span(side.rows[row["name"]]) for side in (a, b)]
    if None in spans:
        return {"why": "measured once"}
    low, high = spans[1][0] - spans[0][1], spans[1][1] - spans[0][0]
    return {"how": "apart", "low": low, "high": high, "winner": _winner(row, low, high)}


def _span(row: dict) -> tuple[float, float] | None:
    """What the value may be: its interval, or as far around it as the baseline measured again lies from itself."""
    if row["low"] is not None and row["high"] is not None:
        return row["low"], row["high"]
    noise = row.get("noise") or {}
    if noise.get("low") is None or noise.get("high") is None:
        return None
    return row["value"] - (noise["high"] - noise["low"]), row["value"] + (
        noise["high"] - noise["low"]
    )


def conclusion(found: dict) -> str:
    """Who wins on what, and what cannot be told, in sentences."""
    rows = [row for row in found["metrics"] if row["name"] not in RESTATED]
    lines = []
    for side in ("a", "b"):
        won = [METRICS[row["name"]].label for row in rows if row["winner"] == side]
        lines.append(
            f"{side.upper()} ({found[side]['name']}) wins on {'; '.join(won) or 'nothing that could be told'}."
        )
    paired = [row for row in rows if row["how"] == "paired"]
    lines += [
        f"{METRICS[row['name']].label}: {undecided(row)}." for row in paired if not row["winner"]
    ]
    lines.append(
        f"Of {len(paired)} paired metrics, {len(paired) * ALPHA:.1f} would seem to differ by chance if the two were the same."
    )
    return "\n".join(lines)


def undecided(row: dict) -> str:
    """Why a paired metric has no winner, and how many items would do, to two digits."""
    if row["low"] == row["high"] == 0:
        return f"the same on all {row['n']:,} items"
    if row["name"] in SPREAD and not row["needed_n"]:
        return "larger by gain or by damage, so nobody wins"
    needed = row["needed_n"] and float(f"{row['needed_n']:.2g}")
    would = f"; about {max(needed, row['n'] + 1):,.0f} would do" if needed else ""
    return f"cannot tell with {row['n']:,} items{would}"
