"""The comparison of two candidates (`kerf.evaluate.ab`) as text for a terminal."""

from textwrap import shorten

from kerf.evaluate import ab
from kerf.evaluate.metrics import METRICS
from kerf.workbench.report.text_format import interval, number, steps_in_words

WIDTH = 100
HEADINGS = ["", "A", "B", "B - A", "95 % interval", "winner"]


def text(comparison: dict) -> str:
    """The two candidates, a line per metric, the items that changed, and the conclusion."""
    lines = []
    for side in ("a", "b"):
        candidate = comparison[side]
        steps = steps_in_words(candidate) or "the model as it is"
        lines.append(f"{side.upper()}  {candidate['name']}: {steps} ({candidate['run']})")
    lines += ["", *_aligned([HEADINGS, *map(_metric, comparison["metrics"])]), ""]
    for change in comparison["changed"]:
        lines += [*_changed(change), ""]
    return "\n".join([*lines, ab.conclusion(comparison)])


def _metric(row: dict) -> list[str]:
    about, a, b, difference = METRICS[row["name"]], row["a"], row["b"], row["difference"]
    size = max(a, b, key=abs) if about.unit == "bytes" else difference or a
    span = interval(row, "bytes" if about.unit == "bytes" else "", size)
    figures = [number(a, about.unit), number(b, about.unit), number(difference, about.unit, size)]
    return [ab.labelled(row), *figures, span, _winner(row)]


def _winner(row: dict) -> str:
    if not row["how"]:
        return f"– ({row['why']})"
    flips = ""
    if "mcnemar_p" in row:
        items = f"{row['a_only']} only A, {row['b_only']} only B"
        flips = f" ({items}, McNemar p = {row['mcnemar_p']:.3g})"
    if row["winner"]:
        return row["winner"].upper() + flips
    undecided = {"exact": "equal", "apart": "cannot tell"}
    return (undecided.get(row["how"]) or ab.undecided(row)) + flips


def _aligned(rows: list[list[str]]) -> list[str]:
    """Lines with the first column flush left, the figures flush right, and the last column as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *figures, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(figures, widths[1:-1], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *cells, last]).rstrip())
    return lines


def _changed(change: dict) -> list[str]:
    label = ab.labelled({"name": change["metric"], "domain": change.get("domain")})
    better = (change["a_better"], change["b_better"])
    items = f"of {change['n']:,} {change['of']}"
    lines = [f"{label}: {items}, {better[0]:,} are better in A and {better[1]:,} in B"]
    for item in change["items"]:
        name = shorten(item["text"] or f"document {item['document']}", WIDTH, placeholder=" …")
        scores = f"{number(item['a'])} / {number(item['b'])}"
        lines.append(f"  {item['better'].upper()}  {scores}  {name}")
    return lines
