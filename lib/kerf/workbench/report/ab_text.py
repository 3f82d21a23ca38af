"""The comparison of two candidates (`kerf.evaluate.ab`) as text for a terminal."""

from textwrap import shorten

from kerf.evaluate import ab
from kerf.evaluate.metrics import METRICS
from kerf.workbench.report.text_format import interval, number, step_in_words

WIDTH = 100


def text(found: dict) -> str:
    """Who they are, a line a metric, which items changed, and the conclusion."""
    sides = [
        f"{key.upper()}  {side['name']}: {'; '.join(map(step_in_words, side['steps'])) or 'the model as it is'} ({side['run']})"
        for key, side in ((key, found[key]) for key in ("a", "b"))
    ]
    head = ["", "A", "B", "B - A", "95 % of it", "who wins"]
    lines = [*sides, "", *_columns([head, *(_line(row) for row in found["metrics"])]), ""]
    for row in found["changed"]:
        lines += [*_changed(row), ""]
    return "\n".join([*lines, ab.conclusion(found)])


def _line(row: dict) -> list[str]:
    about = METRICS[row["name"]]
    size = (
        max(row["a"], row["b"], key=abs) if about.unit == "bytes" else row["difference"] or row["a"]
    )
    return [
        about.label,
        number(row["a"], about.unit),
        number(row["b"], about.unit),
        number(row["difference"], about.unit, size),
        interval(row, "" if about.unit != "bytes" else about.unit, size),
        _told(row),
    ]


def _told(row: dict) -> str:
    if not row["how"]:
        return f"– ({row['why']})"
    flips = (
        f" ({row['a_only']} only A, {row['b_only']} only B, McNemar p = {row['mcnemar_p']:.3g})"
        if "mcnemar_p" in row
        else ""
    )
    if row["winner"]:
        return row["winner"].upper() + flips
    return (
        ab.undecided(row)
        if row["how"] == "paired"
        else {"exact": "equal", "apart": "cannot tell"}[row["how"]]
    ) + flips


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    padded = [
        [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:5], widths[1:5], strict=True)),
            row[5],
        ]
        for row in rows
    ]
    return ["  ".join(row).rstrip() for row in padded]


def _changed(row: dict) -> list[str]:
    label = METRICS[row["metric"]].label
    lines = [
        f"{label}: of {row['n']:,} {row['of']}, {row['a_better']:,} are better in A and {row['b_better']:,} in B"
    ]
    for item in row["items"]:
        known = shorten(item["text"] or f"document {item['document']}", WIDTH, placeholder=" …")
        lines.append(
            f"  {item['better'].upper()}  {number(item['a'])} / {number(item['b'])}  {known}"
        )
    return lines
