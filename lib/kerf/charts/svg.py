"""Charts of a report as inline SVG in the page's colours, light or dark; the same data always gives the same bytes."""

import io
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import IdentityTransform

from kerf.charts.plots import draw_layer_ablation, draw_similarities

INK = "#010203"  # a colour nothing else uses: it becomes currentColor
SERIES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK]  # Okabe-Ito
MARKERS, DASHES = "osD^vPX", ["-", (0, (5, 1.5)), (0, (1.5, 1.2))]
VERDICTS = {  # label, marker and colour
    "PASS": ("may be used", "o", SERIES[2]),
    "FAIL": ("may not", "X", SERIES[1]),
    "INCONCLUSIVE": ("not decided", "D", SERIES[4]),
    "NOT MEASURED": ("not measured", "v", SERIES[6]),
    None: ("baseline, or not judged", "s", INK),
}
BY_LAYER = {"error": "relative output error", "sparsity": "share of zeros"}
FONT = 8.5  # points, as in report.mplstyle; the drawing has 72 dots an inch, so also its unit of length
STYLED = matplotlib.rc_context(fname=Path(__file__).with_name("report.mplstyle"))
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
Size = tuple[float, float]
Mark = tuple[str, float, float]  # name, x and y
Draw = Callable[[Axes, Any], None]  # the content of one panel
Box = tuple[float, float, float, float]  # left, bottom, right, top


@STYLED
def fidelity_against_size(points: list[dict], label: str, log: bool, key: str) -> str:
    """One mark per candidate; points: name (empty: not written), bytes, fidelity (value, low, high), verdict, threshold."""
    figure, (axes,) = _panels(1, 1, (6.4, 3.9))
    marks: list[Mark] = []
    for point in points:
        name, marker, colour = VERDICTS.get(point["verdict"], VERDICTS[None])
        mb, value = point["bytes"] / 1e6, point["fidelity"]["value"]
        marks.append((point["name"], mb, value))
        _interval(axes, mb, point["fidelity"], colour)
        axes.plot(mb, value, marker, color=colour, ms=6, markeredgewidth=0, label=name)
    required = [(point["bytes"] / 1e6, point.get("threshold")) for point in points]
    thresholds = [(mb, value) for mb, value in required if value is not None]
    for threshold in thresholds:
        axes.plot(*threshold, "_", color=INK, ms=10, markeredgewidth=1.1, label="threshold")
    axes.set(xscale="log", yscale="log" if log else "linear", ylabel=label)
    axes.set(xlabel="size on disk in MB (each step to the right is a multiple)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_major_formatter(PLAIN)
    axes.margins(x=0.14, y=0.09)
    _legend(figure, [axes])
    _name_points(figure, axes, marks, thresholds)
    best = ", ".join(f"{name} {value:.4g} at {mb:.1f} MB" for name, mb, value in marks if name)
    return _svg(figure, key, f"{label} against size on disk", f"One mark a candidate: {best}.")


def _interval(axes: Axes, x: float, metric: dict, colour: str) -> None:
    """A vertical line from the low to the high end of a metric, where it has both."""
    low, high = metric.get("low"), metric.get("high")
    if low is not None and high is not None:
        axes.plot([x, x], [low, high], color=colour, linewidth=1.2)


@STYLED
def by_layer(layers: dict[str, list[dict]], key: str) -> str:
    """`key`, error or sparsity: one panel per kind of layer, one line per candidate; empty if no numbered block has any."""
    label, kinds = BY_LAYER[key], _kinds(layers, key)
    if not kinds:
        return ""

    def draw(axes: Axes, lines: dict[str, list[tuple[int, float]]]) -> None:
        for name, points in lines.items():
            # There are as many markers as colours.
            turn, index = divmod(list(layers).index(name), len(SERIES))
            (curve,) = axes.plot(*zip(*points, strict=True), color=SERIES[index], label=name)
            curve.set(linestyle=DASHES[turn % len(DASHES)], marker=MARKERS[index])
            curve.set(linewidth=1.3, markersize=3)
        axes.set(yscale="log" if key == "error" else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_minor_locator(NullLocator())

    figure = _small_multiples(kinds, draw, "block of the model, first to last", label, sharey=True)
    values = {name: [row.get(key) or 0 for row in rows] for name, rows in layers.items() if rows}
    largest = "; ".join(f"{name}: largest {max(row):.2g}" for name, row in values.items())
    text = f"{label.capitalize()} of each layer. {largest}."
    return _svg(figure, f"layers-{key}", f"{key.capitalize()} by layer", text)


def _kinds(layers: dict[str, list[dict]], key: str) -> dict[str, dict[str, list]]:
    """{kind: {candidate: [(block, value of key)]}}; the first number in a name is its block."""
    kinds: dict[str, dict[str, list]] = {}
    for name, row in ((name, row) for name, rows in layers.items() for row in rows):
        split = re.fullmatch(r".*?\.(\d+)\.(.+)", row["name"])
        if split and (row.get(key) or 0) > 0:
            points = kinds.setdefault(split[2], {}).setdefault(name, [])
            points.append((int(split[1]), row[key]))
    return kinds


@STYLED
def similarity_distributions(pictures: dict[str, dict]) -> str:
    """Similarities of sentence pairs before and after: one panel per candidate; empty if there is none."""
    if not pictures:
        return ""

    def draw(axes: Axes, counts: dict) -> None:
        draw_similarities(axes, counts, INK, SERIES[1])
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(PLAIN)

    x, y = "cosine similarity of two sentences", "pairs of sentences"
    figure = _small_multiples(pictures, draw, x, y, sharex=True, sharey=True)
    text = f"Histograms of the similarity of sentence pairs for {', '.join(pictures)}, each over that of the baseline."
    return _svg(figure, "similarities", "Similarities before and after", text)


@STYLED
def divergence_by_layer(restored: dict[str, list[dict]]) -> str:
    """Divergence that is left with one layer in float: one panel per candidate; the first row is that of none in float."""
    if not restored:
        return ""

    def draw(axes: Axes, rows: list[dict]) -> None:
        draw_layer_ablation(axes, rows, INK, SERIES[1])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))

    x = "block that is float again, first to last"
    figure = _small_multiples(restored, draw, x, "mean KL divergence")
    best = {name: min(rows[1:], key=lambda row: row["kl"]) for name, rows in restored.items()}
    least = "; ".join(f"{name}: {row['layer']} leaves least" for name, row in best.items())
    text = f"What is left with one block in float. {least}."
    return _svg(figure, "restored", "Divergence by layer", text)


@STYLED
def trend(line: list[dict], name: str, label: str, key: str) -> str:
    """Fidelity of an experiment's worst release candidate from run to run; line: as `leaderboard.trends` gives it."""
    points = [(place, run["worst"]["fidelity"]) for place, run in enumerate(line) if run["worst"]]
    if not points:
        return ""
    figure, (axes,) = _panels(1, 1, (6.4, 1.9))
    for place, metric in points:
        _interval(axes, place, metric, SERIES[0])
    values = [metric["value"] for _, metric in points]
    axes.plot([place for place, _ in points], values, "o-", color=SERIES[0], ms=4, linewidth=1)
    days = [run["started"][5:16].replace("T", " ") for run in line]
    axes.set_xticks(range(len(line)), days, rotation=25, ha="right")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(PLAIN)
    axes.set(ylabel=label)
    text = ", ".join(f"{line[place]['started'][:16]} {row['value']:.5g}" for place, row in points)
    return _svg(figure, key, f"{name} from run to run", f"{text}.")


def _small_multiples(panels: dict, draw: Draw, x: str, y: str, **shared: bool) -> Figure:
    """A grid of panels with their names as titles, at most three per row, under one legend; x, y: labels of all axes."""
    columns, rows = min(3, len(panels)), -(-len(panels) // 3)
    figure, grid = _panels(len(panels), columns, (8.0, 0.6 + 1.5 * rows), **shared)
    for axes, (name, content) in zip(grid, panels.items(), strict=True):
        axes.set_title(name)
        draw(axes, content)
        axes.yaxis.set_major_formatter(PLAIN)
    figure.supxlabel(x, fontsize=FONT)
    figure.supylabel(y, fontsize=FONT)
    _legend(figure, grid)
    return figure


def _panels(count: int, columns: int, inches: Size, **shared: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=inches, dpi=72, layout="constrained")
    grid = figure.subplots(-(-count // columns), columns, squeeze=False, **shared).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)  # there may be an unused panel below
    return figure, list(grid[:count])


def _legend(figure: Figure, grid: list[Axes]) -> None:
    """One legend of all panels above them."""
    entries: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = min(5, len(entries))
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns)


def _name_points(figure: Figure, axes: Axes, marks: list[Mark], thresholds: list[Size]) -> None:
    """Write each name where it covers the least of the marks and of the names written before it."""
    axes.autoscale_view()
    figure.draw_without_rendering()  # the layout decides where the data lies
    frame, right, pixels = axes.get_window_extent(), figure.bbox.x1, axes.transData.transform
    placed = [(name, *pixels((mb, value))) for name, mb, value in marks]
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for _, x, y in placed]
    taken += [(x - 5, y - 1, x + 5, y + 1) for x, y in map(pixels, thresholds)]

    def cost(box: Box) -> float:
        area = 50.0 * (box[0] < frame.x0 or box[2] > right or box[1] < frame.y0)
        for left, bottom, end, top in taken:
            width = max(0, min(box[2], end) - max(box[0], left))
            area += width * max(0, min(box[3], top) - max(box[1], bottom))
        return area

    named = [mark for mark in placed if mark[0]]
    for name, x, y in sorted(named, key=lambda mark: -mark[2]):
        width, half = 0.58 * FONT * len(name), FONT / 2
        boxes: list[Box] = []
        for dy in (0, 5, -5, 10, -10, 16, -16, 24, -24):
            boxes.append((x + 7, y + dy - half, x + 7 + width, y + dy + half))
            boxes.append((x - 7 - width, y + dy - half, x - 7, y + dy + half))
        best = min(boxes, key=cost)
        taken.append(best)
        edge, align = (best[0], "left") if best[0] > x else (best[2], "right")
        text = axes.text(edge, (best[1] + best[3]) / 2, name, transform=IdentityTransform())
        text.set(ha=align, va="center_baseline")


def _svg(figure: Figure, name: str, title: str, text: str) -> str:
    """A figure as an <svg> for a page: ids prefixed with `name`, since several charts share a page; text: for screen readers."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.S)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page has its own
    for place, colour in enumerate(SERIES[:-1]):
        svg = svg.replace(colour, f"var(--series-{place}, {colour})")
    box = svg[svg.index('viewBox="') :].split('"')[1]
    title, text = escape(title), escape(text)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}"'
    head += f' role="img" aria-label="{title}. {text}"><title>{title}</title>'
    return head + svg[svg.index(">", svg.index("<svg")) + 1 :].replace(INK, "currentColor").strip()
