"""Figures of the notebooks. Each function takes plain numbers and returns a matplotlib Figure."""

import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

# Okabe and Ito: safe for the colour-blind.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
NAME_OF_POINT: dict[str, Any] = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 8}
COLOURS, MARKERS = (BLUE, ORANGE, GREEN, GREY, "#CC79A7", "#56B4E9"), "os^Dvp"
Values = Sequence[float]
Ends = Sequence[Sequence[float | None]]  # low and high of each value


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook as PNG; alt: its text for those who cannot see it."""
    from IPython.display import Image, display

    png = _png(figure, dpi=110, bbox_inches="tight")
    display(Image(png, alt=alt), metadata={"image/png": {"alt": alt}})


def as_html(figure: Figure, alt: str) -> str:
    """An <img> of a figure for a widget that follows a slider: coarser than `show`, and several times as quick."""
    png = b64encode(_png(figure, dpi=84, pil_kwargs={"compress_level": 1})).decode()
    return f'<img alt="{escape(alt)}" style="max-width: 100%" src="data:image/png;base64,{png}">'


def _png(figure: Figure, **options: Any) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None}, **options)
    return png.getvalue()


def _axes(height: float = 3.4, rows: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """rows: names of the rows of a chart, from top to bottom."""
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
    return figure, axes


def _finish(figure: Figure, axes: Axes, x: str, y: str = "", **settings: Any) -> Figure:
    """Label the axes; a legend where something has a label."""
    axes.set(xlabel=x, ylabel=y, **settings)
    if axes.get_legend_handles_labels()[1] and not axes.get_legend():
        axes.legend(frameon=False)
    return figure


def _bars(names: list[str], values: list[float], colour: str, label: str) -> Figure:
    """A bar per layer, on a logarithmic scale."""
    figure, axes = _axes()
    axes.bar(range(len(names)), values, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    return _finish(figure, axes, "", label, yscale="log")


def short(names: list[str]) -> str:
    """A layer group's name, without the prefix that all layers share."""
    first = names[0].removeprefix("encoder.").removeprefix("layer.")
    return first if len(names) == 1 else f"{first} +{len(names) - 1}"


def outliers(groups: list[dict]) -> Figure:
    """Peak over root mean square of every layer's input, in the order the layers run."""
    names = [short(group["names"]) for group in groups]
    peaks = [group["peak_over_rms"] for group in groups]
    return _bars(names, peaks, BLUE, "peak / RMS of the input")


def layer_errors(layers: list[dict]) -> Figure:
    """Relative squared output error of every layer."""
    layers = [layer for layer in layers if layer["error"]]
    names, errors = [short([row["name"]]) for row in layers], [row["error"] for row in layers]
    return _bars(names, errors, ORANGE, "share of the output lost")


def channels(power: Values, title: str) -> Figure:
    """Energy of each input channel of one layer, largest first. power: (features,) mean squares."""
    figure, axes = _axes(2.8)
    axes.plot(sorted(map(float, power), reverse=True), color=BLUE)
    axes.set(yscale="log", title=title)
    return _finish(figure, axes, "channel, largest first", "mean square")


def _histograms(axes: Axes, before: np.ndarray, after: np.ndarray, label: str) -> None:
    """Histograms of a layer's weights before and after. before, after: flat arrays."""
    edges = np.linspace(before.min(), before.max() + 1e-9, 121)
    counts = np.histogram(before, edges)[0]
    axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.6, label="before")
    axes.stairs(np.histogram(after, edges)[0], edges, color=ORANGE, label=label)
    axes.set(yscale="log")


def weights_on_grid(before: np.ndarray, after: np.ndarray, title: str) -> Figure:
    """Histograms of a layer's weights before and after quantization or pruning. before, after: flat arrays."""
    figure, axes = _axes(2.8)
    _histograms(axes, before, after, "after")
    return _finish(figure, axes, "weight", "count", title=title)


def layer_cut(before: np.ndarray, after: np.ndarray, errors: np.ndarray) -> Figure:
    """Histograms of a layer's weights before and after, flat arrays, and an image of the errors of its groups, (rows, groups)."""
    # The layout is fixed, and ticks are few and plain: they take most of the time to draw, and the figure follows a slider.
    figure = Figure(figsize=(10, 3.3))
    boxes = (0.07, 0.16, 0.52, 0.74), (0.67, 0.16, 0.24, 0.74), (0.925, 0.16, 0.012, 0.74)
    left, right, scale = map(figure.add_axes, boxes)
    _histograms(left, before, after, "after, on the grid")
    left.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="upper left")
    left.set(xlabel="weight", ylabel="count")
    logs = np.log10(errors.clip(min=1e-5))
    image = right.imshow(logs, "cividis", aspect="auto", interpolation="nearest", vmin=-5, vmax=0)
    right.set(xlabel="group of columns", ylabel="row of the weight", title="error of each group")
    bar = figure.colorbar(image, cax=scale)
    left.yaxis.set_major_locator(FixedLocator([1, 100, 10_000]))
    left.yaxis.set_major_formatter("{x:,.0f}")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=axis is not left.xaxis))
    for axis in (left.yaxis, bar.ax.yaxis):
        axis.set_minor_locator(NullLocator())
    bar.set_ticks([-5, -3, -1], labels=["1e-5", "0.001", "0.1"])
    return figure


def draw_similarities(axes: Axes, counts: dict, baseline: str, candidate: str) -> None:
    """Histograms of pairwise sentence similarities in two colours; counts: edges, baseline and candidate."""
    edges = counts["edges"]
    axes.stairs(counts["baseline"], edges, fill=True, alpha=0.3, color=baseline, label="baseline")
    axes.stairs(counts["candidate"], edges, linewidth=1.4, color=candidate, label="candidate")


def similarity_distributions(picture: dict) -> Figure:
    """Pairwise sentence similarities of both models."""
    figure, axes = _axes(3)
    draw_similarities(axes, picture, BLUE, ORANGE)
    return _finish(figure, axes, "cosine similarity of two sentences", "pairs")


def cosines(values: Values) -> Figure:
    """Cosine of every sentence to the baseline, sorted."""
    figure, axes = _axes(2.8)
    axes.plot([place / len(values) for place in range(len(values))], sorted(values), color=BLUE)
    return _finish(figure, axes, "share of sentences", "cosine to the baseline")


def divergence(picture: dict) -> Figure:
    """Mean KL divergence by a token's position in its chunk, and by how often the token occurs."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    positions, counts = picture["by_position"], picture["by_frequency"]
    starts = [row["from"] for row in positions]
    left.plot(starts, [row["kl"] for row in positions], "o-", color=BLUE)
    right.bar(range(len(counts)), [row["kl"] for row in counts], color=BLUE)
    right.set_xticks(range(len(counts)), [row["count"] for row in counts], rotation=20, fontsize=8)
    labels = ("position in the chunk", "occurrences of the token in the text")
    for axes, label in zip((left, right), labels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlabel=label, ylabel="mean KL, nats", ylim=(0, None))
    return figure


def draw_layer_ablation(axes: Axes, rows: list[dict], whole: str, restored: str) -> None:
    """Mean KL divergence with one layer in float, in two colours; the first row is that of the whole candidate."""
    axes.axhline(rows[0]["kl"], linewidth=1, color=whole, label="nothing in float")
    (line,) = axes.plot([row["kl"] for row in rows[1:]], "o-", color=restored, linewidth=1.3)
    line.set(markersize=3, label="one block in float")


def layer_ablation(rows: list[dict]) -> Figure:
    """Mean KL divergence that is left when a layer is float again; rows: as `kerf.evaluate.layer_ablation` gives them."""
    figure, axes = _axes(2.8)
    draw_layer_ablation(axes, rows, ORANGE, BLUE)
    return _finish(figure, axes, "block in float", "mean KL divergence")


def block_errors(blocks: list[dict]) -> Figure:
    """Error of every block on held-out text before and after reconstruction."""
    figure, axes = _axes(2.8)
    places = np.arange(len(blocks))
    for side, colour, shift in (("before", GREY, -0.2), ("after", BLUE, 0.2)):
        axes.bar(places + shift, [block[side] for block in blocks], 0.4, color=colour, label=side)
    axes.set_xticks(places, [short([block["block"]]) for block in blocks])
    return _finish(figure, axes, "", "error on held-out text")


def sensitivity(table: dict) -> Figure:
    """Heat map of 1 - mean cosine by layer and bit width; table: as `kerf.quantize.mixed_precision` makes it."""
    costs = np.array(table["costs"]).clip(min=1e-6)
    figure, axes = _axes(1 + 0.17 * len(costs))
    picture = axes.imshow(np.log10(costs), aspect="auto", cmap="cividis")
    axes.set_xticks(range(len(table["widths"])), [f"{width:g}" for width in table["widths"]])
    axes.set_yticks(range(len(costs)), [short([name]) for name in table["layers"]], fontsize=6)
    figure.colorbar(picture, label="log10 of 1 - mean cosine")
    return _finish(figure, axes, "bits")


def frontier(points: list[dict], table: dict, rest: float) -> Figure:
    """Predicted loss against bytes, of the best assignments and of the same width everywhere; rest: bytes of other tensors."""
    figure, axes = _axes()
    sizes = [(point["bytes"] + rest) / 1e6 for point in points]
    axes.plot(sizes, [point["cost"] for point in points], ".-", color=BLUE, label="mixed")
    uniform_sizes = (np.array(table["bytes"]).sum(0) + rest) / 1e6
    uniform_costs = np.array(table["costs"]).clip(min=0).sum(0)
    axes.plot(uniform_sizes, uniform_costs, "x", color=ORANGE, label="one width")
    for width, size, cost in zip(table["widths"], uniform_sizes, uniform_costs, strict=True):
        axes.annotate(f"{width:g}", (size, cost), **NAME_OF_POINT)
    axes.set(yscale="log")
    return _finish(figure, axes, "MB of the weight file", "predicted 1 - mean cosine")


def bounds(rows: list[dict], ahead: list[dict], bound: Callable, title: str) -> Figure:
    """Bounds of candidates against their size, the frontier `ahead` named and joined; rows: of the leaderboard."""
    figure, axes = _axes()
    measured = [row for row in rows if row["bytes"] and bound(row) is not None]
    for group, marker, colour in ((measured, "o", GREY), (ahead, "s-", BLUE)):
        sizes = [row["bytes"] / 1e6 for row in group]
        axes.plot(sizes, [bound(row) for row in group], marker, color=colour)
    for row in ahead:
        axes.annotate(row["name"], (row["bytes"] / 1e6, bound(row)), **NAME_OF_POINT)
    axes.set(xscale="log", title=title)
    return _finish(figure, axes, "MB of the weight file", "at the worse end of the interval")


def _intervals(axes: Axes, values: Values, ends: Ends, places: Values, **style: Any) -> None:
    """Dots with horizontal bars to both ends of their interval; an end of None has no bar."""
    bars = np.zeros((2, len(values)))
    for place, (value, interval) in enumerate(zip(values, ends, strict=True)):
        bars[:, place] = [0 if end is None else abs(end - value) for end in interval]
    axes.errorbar(values, places, xerr=bars, capsize=3, **style)


def ablation_results(rows: list[dict]) -> Figure:
    """1 - mean cosine of every row with its interval."""
    figure, axes = _axes(0.8 + 0.3 * len(rows), [row["name"] for row in rows])
    losses = [1 - row["cosine"] for row in rows]
    ends = [[None if row[end] is None else 1 - row[end] for end in ("high", "low")] for row in rows]
    _intervals(axes, losses, ends, range(len(rows)), fmt="o", color=BLUE)
    return _finish(figure, axes, "1 - mean cosine", xscale="log")


def differences(rows: list[dict]) -> Figure:
    """Candidate minus baseline with its interval; rows: as `kerf.evaluate.tasks.compare` gives them."""
    figure, axes = _axes(1 + 0.3 * len(rows), [f"{row['task']}, {row['metric']}" for row in rows])
    values, ends = [row["difference"] for row in rows], [(row["low"], row["high"]) for row in rows]
    _intervals(axes, values, ends, range(len(rows)), fmt="o", color=BLUE)
    axes.axvline(0, color=GREY)
    return _finish(figure, axes, "candidate - baseline")


def throughput(rows: list[dict]) -> Figure:
    """Texts a second over the baseline's; rows: as `kerf.profiling.serving_benchmark` gives them."""
    rows = [row for row in rows if row["measure"].startswith("throughput")]
    rows = [row for row in rows if row["model"] != "baseline"]
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = _axes(1 + 0.16 * len(rows))
    for index, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        ratios = [row["ratio"] for row in own]
        ends = [(row["ratio_low"], row["ratio_high"]) for row in own]
        places = [measures.index(row["measure"]) + 0.7 * index / len(models) for row in own]
        colour, marker = COLOURS[index % 6], MARKERS[index % 6]
        _intervals(axes, ratios, ends, places, color=colour, fmt=marker, label=model)
    axes.axvline(1, color=GREY)
    names = [measure.removeprefix("throughput, ") for measure in measures]
    axes.set_yticks(np.arange(len(measures)) + 0.25, names)
    axes.invert_yaxis()
    axes.legend(fontsize="small")
    return _finish(figure, axes, "texts a second, over the baseline's")


def scores(picture: dict) -> Figure:
    """Scores of every pair by both models; picture: baseline and candidate, (queries, passages), the right passage first."""
    figure, axes = _axes(4)
    groups = ("others", GREY, slice(1, None), 4), ("right passage", ORANGE, slice(0, 1), 10)
    for name, colour, places, size in groups:
        x, y = (np.array(picture[side])[:, places].ravel() for side in ("baseline", "candidate"))
        axes.scatter(x, y, s=size, color=colour, label=name, linewidths=0)
    return _finish(figure, axes, "score by the baseline", "score by the candidate")


def training(losses: list[float], chance: float, window: int = 20) -> Figure:
    """Loss of every step and its mean over the last `window`; chance: the loss of guessing."""
    figure, axes = _axes(2.8)
    steps = np.arange(1, len(losses) + 1)
    sums = np.cumsum([0.0, *losses])
    first = np.maximum(steps - window, 0)
    means = (sums[steps] - sums[first]) / (steps - first)
    axes.plot(steps, losses, ".", color=GREY, markersize=3, label="a step")
    axes.plot(steps, means, color=BLUE, label=f"mean of the last {window}")
    axes.axhline(chance, color=ORANGE, label="guessing")
    return _finish(figure, axes, "step", "cross-entropy, nats")


def output_differences(rows: list[dict], a: str, b: str) -> Figure:
    """Each paired difference in half-widths of its interval, on the better side; rows: of `kerf.evaluate.ab.compare`."""
    paired = [row for row in rows if row["how"] == "paired" and row["low"] is not None]
    paired = [row for row in paired if row["low"] < row["high"]]
    figure, axes = _axes(1 + 0.28 * len(paired), [row["name"] for row in paired])
    for place, row in enumerate(paired):
        scale = (row["high"] - row["low"]) / 2 * (1 if row["better"] == "higher" else -1)
        colour = {"a": BLUE, "b": ORANGE}.get(row["winner"], GREY)
        axes.plot([row["low"] / scale, row["high"] / scale], [place, place], color=colour)
        axes.plot(row["difference"] / scale, place, "o", color=colour)
    axes.axvline(0, color=GREY)
    axes.set_xscale("symlog", linthresh=3)
    direction = "difference, in half-widths of its interval"
    return _finish(figure, axes, f"{a} is better  ←  {direction}  →  {b} is better")
