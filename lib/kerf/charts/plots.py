"""Figures of the notebooks. Each function takes plain numbers and returns a matplotlib Figure."""

import io
from base64 import b64encode
from html import escape

from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#767676",
)  # Okabe and Ito: safe for the colour-blind
COLOURS, MARKERS = (BLUE, ORANGE, GREEN, GREY, "#CC79A7", "#56B4E9"), "os^Dvp"


def show(figure: Figure, alt: str) -> None:
    """Display a figure as PNG with text for those who cannot see it."""
    from IPython.display import Image, display

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    display(Image(png.getvalue(), alt=alt), metadata={"image/png": {"alt": alt}})


def as_html(figure: Figure, alt: str) -> str:
    """An <img> of a figure for a widget that follows a slider: coarser than `show`, and several times as quick."""
    png = io.BytesIO()
    figure.savefig(
        png, format="png", dpi=84, metadata={"Software": None}, pil_kwargs={"compress_level": 1}
    )
    return f'<img alt="{escape(alt)}" style="max-width: 100%" src="data:image/png;base64,{b64encode(png.getvalue()).decode()}">'


def _axes(width: float = 8, height: float = 3.4):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def outliers(groups: list[dict]) -> Figure:
    """Peak over root mean square of every layer's input, in the order the layers run."""
    figure, axes = _axes()
    axes.bar(range(len(groups)), [g["peak_over_rms"] for g in groups], color=BLUE)
    axes.set_xticks(
        range(len(groups)), [short(g["names"]) for g in groups], rotation=90, fontsize=7
    )
    _ = axes.set(ylabel="peak / RMS of the input", yscale="log")
    return figure


def short(names: list[str]) -> str:
    """A layer group's name, without what all of them share."""
    first = names[0].removeprefix("encoder.").removeprefix("layer.")
    return first if len(names) == 1 else f"{first} +{len(names) - 1}"


def channels(power, title: str) -> Figure:
    """Energy of each input channel of one layer, largest first. power: (features,) mean squares."""
    figure, axes = _axes(height=2.8)
    axes.plot(sorted((float(p) for p in power), reverse=True), color=BLUE)
    _ = axes.set(yscale="log", xlabel="channel, largest first", ylabel="mean square", title=title)
    return figure


def layer_errors(layers: list[dict]) -> Figure:
    """Relative squared output error of every layer."""
    figure, axes = _axes()
    known = [layer for layer in layers if layer["error"]]
    axes.bar(range(len(known)), [layer["error"] for layer in known], color=ORANGE)
    axes.set_xticks(
        range(len(known)), [short([layer["name"]]) for layer in known], rotation=90, fontsize=6
    )
    _ = axes.set(ylabel="share of the output lost", yscale="log")
    return figure


def weights_on_grid(before, after, title: str) -> Figure:
    """Histogram of a layer's weights before, and of the points they went to. before, after: flat arrays."""
    figure, axes = _axes(height=2.8)
    low, high = float(before.min()), float(before.max())
    axes.hist(before, bins=120, range=(low, high), color=BLUE, alpha=0.6, label="before")
    axes.hist(after, bins=120, range=(low, high), histtype="step", color=ORANGE, label="after")
    _ = axes.set(xlabel="weight", ylabel="count", yscale="log", title=title)
    axes.legend(frameon=False)
    return figure


def cut(before, after, errors) -> Figure:
    """Weights of a layer with the grid that they went to, and the error of every group as an image.

    before, after: flat arrays; errors: (rows, groups), over the layer's mean squared weight. Laid out by hand: it follows a slider.
    """
    import numpy as np
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    figure = Figure(figsize=(10, 3.3))
    left, right = (
        figure.add_axes((0.07, 0.16, 0.52, 0.74)),
        figure.add_axes((0.67, 0.16, 0.24, 0.74)),
    )
    edges = np.linspace(before.min(), before.max() + 1e-9, 121)
    left.stairs(
        np.histogram(before, edges)[0], edges, fill=True, color=BLUE, alpha=0.6, label="before"
    )
    left.stairs(np.histogram(after, edges)[0], edges, color=ORANGE, label="after, on the grid")
    left.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="upper left")
    _ = left.set(xlabel="weight", ylabel="count", yscale="log")
    image = right.imshow(
        np.log10(errors.clip(min=1e-5)),
        aspect="auto",
        cmap="cividis",
        interpolation="nearest",
        vmin=-5,
        vmax=0,
    )
    _ = right.set(
        xlabel="group of columns", ylabel="row of the weight", title="error of each group"
    )
    bar = figure.colorbar(image, cax=figure.add_axes((0.925, 0.16, 0.012, 0.74)))
    # Ticks are most of the drawing's time: few, and none that mathematics has to be set for.
    left.yaxis.set_major_locator(FixedLocator([1, 100, 10_000]))
    left.yaxis.set_major_formatter("{x:,.0f}")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=axis is not left.xaxis))
    for axis in (left.yaxis, bar.ax.yaxis):
        axis.set_minor_locator(NullLocator())
    bar.set_ticks([-5, -3, -1], labels=["1e-5", "0.001", "0.1"])
    return figure


def similarity_distributions(picture: dict) -> Figure:
    """Pairwise sentence similarities of both models."""
    figure, axes = _axes(height=3)
    axes.stairs(
        picture["baseline"], picture["edges"], color=BLUE, fill=True, alpha=0.5, label="baseline"
    )
    axes.stairs(
        picture["candidate"], picture["edges"], color=ORANGE, linewidth=1.5, label="candidate"
    )
    _ = axes.set(xlabel="cosine similarity of two sentences", ylabel="pairs")
    axes.legend(frameon=False)
    return figure


def cosines(values) -> Figure:
    """Cosine of every sentence to the baseline, sorted."""
    figure, axes = _axes(height=2.8)
    axes.plot([i / len(values) for i in range(len(values))], sorted(values), color=BLUE)
    _ = axes.set(xlabel="share of sentences", ylabel="cosine to the baseline")
    return figure


def divergence(picture: dict) -> Figure:
    """Mean KL divergence by the place of a token in its chunk, and by how often it occurs."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    places, counts = picture["by_position"], picture["by_frequency"]
    left.plot(
        [place["from"] for place in places], [place["kl"] for place in places], "o-", color=BLUE
    )
    right.bar(range(len(counts)), [count["kl"] for count in counts], color=BLUE)
    right.set_xticks(
        range(len(counts)), [count["count"] for count in counts], rotation=20, fontsize=8
    )
    for axes, label in (
        (left, "position in the chunk"),
        (right, "occurrences of the token in the text"),
    ):
        axes.spines[["top", "right"]].set_visible(False)
        _ = axes.set(xlabel=label, ylabel="mean KL, nats", ylim=(0, None))
    return figure


def block_errors(blocks: list[dict]) -> Figure:
    """Error of every block on held-back text before and after it was learned."""
    figure, axes = _axes(height=2.8)
    places = range(len(blocks))
    axes.bar(
        [p - 0.2 for p in places], [b["before"] for b in blocks], 0.4, color=GREY, label="before"
    )
    axes.bar(
        [p + 0.2 for p in places], [b["after"] for b in blocks], 0.4, color=BLUE, label="after"
    )
    axes.set_xticks(places, [short([b["block"]]) for b in blocks])
    _ = axes.set(ylabel="error on held-back text")
    axes.legend(frameon=False)
    return figure


def sensitivity(table: dict) -> Figure:
    """Heat map of 1 - mean cosine by layer and width. table: as `kerf.quantize.mixed_precision` keeps it."""
    import numpy as np

    costs = np.array(table["costs"]).clip(min=1e-6)
    figure, axes = _axes(height=1 + 0.17 * len(costs))
    picture = axes.imshow(np.log10(costs), aspect="auto", cmap="cividis")
    axes.set_xticks(range(len(table["widths"])), [f"{width:g}" for width in table["widths"]])
    axes.set_yticks(range(len(costs)), [short([name]) for name in table["layers"]], fontsize=6)
    _ = axes.set(xlabel="bits")
    figure.colorbar(picture, label="log10 of 1 - mean cosine")
    return figure


def frontier(points: list[dict], table: dict, rest: float) -> Figure:
    """Predicted loss of the best assignments against bytes, and of the same width everywhere."""
    import numpy as np

    costs, sizes = np.array(table["costs"]).clip(min=0), np.array(table["bytes"])
    figure, axes = _axes()
    axes.plot(
        [(p["bytes"] + rest) / 1e6 for p in points],
        [p["cost"] for p in points],
        ".-",
        color=BLUE,
        label="mixed",
    )
    axes.plot((sizes.sum(0) + rest) / 1e6, costs.sum(0), "x", color=ORANGE, label="one width")
    for width, size, cost in zip(table["widths"], sizes.sum(0), costs.sum(0), strict=True):
        axes.annotate(
            f"{width:g}",
            ((size + rest) / 1e6, cost),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8,
        )
    _ = axes.set(xlabel="MB of the weight file", ylabel="predicted 1 - mean cosine", yscale="log")
    axes.legend(frameon=False)
    return figure


def ingredients(rows: list[dict]) -> Figure:
    """1 - mean cosine of every row with its interval."""
    figure, axes = _axes(height=0.8 + 0.3 * len(rows))
    lost = [1 - row["cosine"] for row in rows]
    bars = [[_reach(row, "cosine", end) for row in rows] for end in ("high", "low")]
    axes.errorbar(lost, range(len(rows)), xerr=bars, fmt="o", color=BLUE, capsize=3)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    _ = axes.set(xlabel="1 - mean cosine", xscale="log")
    return figure


def _reach(row: dict, value: str, end: str) -> float:
    """From a row's value to an end of its interval; 0 where it has none."""
    return 0.0 if row[end] is None else abs(row[end] - row[value])


def bounds(rows: list[dict], ahead: list[dict], bound, title: str) -> Figure:
    """What candidates keep at least against their size, those `ahead` named and joined; rows: as `kerf.workbench.report.leaderboard` has them."""
    figure, axes = _axes()
    known = [row for row in rows if row["bytes"] and bound(row) is not None]
    axes.plot([row["bytes"] / 1e6 for row in known], [bound(row) for row in known], "o", color=GREY)
    axes.plot(
        [row["bytes"] / 1e6 for row in ahead], [bound(row) for row in ahead], "s-", color=BLUE
    )
    for row in ahead:
        axes.annotate(
            row["name"],
            (row["bytes"] / 1e6, bound(row)),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    _ = axes.set(
        xlabel="MB of the weight file",
        xscale="log",
        ylabel="at the worse end of the interval",
        title=title,
    )
    return figure


def throughput(rows: list[dict]) -> Figure:
    """Texts a second over the baseline's; rows: as `kerf.profiling.serving_benchmark` gives them."""
    kept = [
        row
        for row in rows
        if row["measure"].startswith("throughput") and row["model"] != "baseline"
    ]
    measures, names = (
        list(dict.fromkeys(row["measure"] for row in kept)),
        list(dict.fromkeys(row["model"] for row in kept)),
    )
    figure, axes = _axes(height=1 + 0.16 * len(kept))
    for place, name in enumerate(names):
        here = [row for row in kept if row["model"] == name]
        at = [measures.index(row["measure"]) + 0.7 * place / len(names) for row in here]
        ends = [
            (row["ratio_low"] or row["ratio"], row["ratio_high"] or row["ratio"]) for row in here
        ]
        bars = [
            [row["ratio"] - low for row, (low, _) in zip(here, ends, strict=True)],
            [high - row["ratio"] for row, (_, high) in zip(here, ends, strict=True)],
        ]
        axes.errorbar(
            [row["ratio"] for row in here],
            at,
            xerr=bars,
            fmt=MARKERS[place % 6],
            color=COLOURS[place % 6],
            capsize=3,
            label=name,
        )
    axes.axvline(1, color=GREY)
    axes.set_yticks(
        [number + 0.25 for number in range(len(measures))],
        [measure.removeprefix("throughput, ") for measure in measures],
    )
    axes.invert_yaxis()
    axes.legend(fontsize="small")
    _ = axes.set(xlabel="texts a second, over the baseline's")
    return figure


def scores(picture: dict) -> Figure:
    """Scores of every pair by both models, of right passages (the first of a shortlist) and others; (queries, passages) each."""
    figure, axes = _axes(height=4)
    for name, colour, places, size in (
        ("others", GREY, slice(1, None), 4),
        ("right passage", ORANGE, slice(0, 1), 10),
    ):
        before, after = (
            [each for row in picture[side] for each in row[places]]
            for side in ("baseline", "candidate")
        )
        axes.scatter(before, after, s=size, color=colour, label=name, linewidths=0)
    _ = axes.set(xlabel="score by the baseline", ylabel="score by the candidate")
    axes.legend(frameon=False)
    return figure


def training(losses: list[float], chance: float, window: int = 20) -> Figure:
    """Loss of every step and its mean over the last `window`; chance: the loss of guessing."""
    import numpy as np

    figure, axes = _axes(height=2.8)
    steps = np.arange(1, len(losses) + 1)
    sums = np.cumsum([0.0, *losses])
    first = np.maximum(steps - window, 0)
    axes.plot(steps, losses, ".", color=GREY, markersize=3, label="a step")
    axes.plot(
        steps,
        (sums[steps] - sums[first]) / (steps - first),
        color=BLUE,
        label=f"mean of the last {window}",
    )
    axes.axhline(chance, color=ORANGE, label="guessing")
    _ = axes.set(xlabel="step", ylabel="cross-entropy, nats")
    axes.legend(frameon=False)
    return figure


def differences(rows: list[dict]) -> Figure:
    """Candidate minus baseline with its interval; rows: as `kerf.evaluate.tasks.compare` gives them."""
    figure, axes = _axes(height=1 + 0.3 * len(rows))
    middle = [row["difference"] for row in rows]
    bars = [[_reach(row, "difference", end) for row in rows] for end in ("low", "high")]
    axes.errorbar(middle, range(len(rows)), xerr=bars, fmt="o", color=BLUE, capsize=3)
    axes.axvline(0, color=GREY)
    axes.set_yticks(range(len(rows)), [f"{row['task']}, {row['metric']}" for row in rows])
    axes.invert_yaxis()
    _ = axes.set(xlabel="candidate - baseline")
    return figure


def output_differences(rows: list[dict], a: str, b: str) -> Figure:
    """Who is better at what, each paired metric in half-widths of its own interval; rows: as `kerf.evaluate.ab.compare` gives them."""
    rows = [
        row
        for row in rows
        if row["how"] == "paired" and row["low"] is not None and row["low"] < row["high"]
    ]
    figure, axes = _axes(height=1 + 0.28 * len(rows))
    for place, row in enumerate(rows):
        scale = (row["high"] - row["low"]) / 2 * (1 if row["better"] == "higher" else -1)
        low, middle, high = (row[key] / scale for key in ("low", "difference", "high"))
        colour = {"a": BLUE, "b": ORANGE}.get(row["winner"], GREY)
        axes.plot([low, high], [place, place], color=colour)
        axes.plot(middle, place, "o", color=colour)
    axes.axvline(0, color=GREY)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xscale("symlog", linthresh=3)
    axes.invert_yaxis()
    _ = axes.set(
        xlabel=f"{a} is better  ←  difference, in half-widths of its interval  →  {b} is better"
    )
    return figure


def layer_ablation(rows: list[dict]) -> Figure:
    """Mean KL divergence that is left when a layer is float again; rows: as `kerf.evaluate.layer_ablation` gives them."""
    figure, axes = _axes(height=2.8)
    axes.bar(range(len(rows) - 1), [row["kl"] for row in rows[1:]], color=BLUE)
    axes.axhline(rows[0]["kl"], color=ORANGE, label="nothing restored")
    low = min(row["kl"] for row in rows)
    _ = axes.set(
        xlabel="layer in float",
        ylabel="mean KL that is left",
        ylim=(low - (rows[0]["kl"] - low), None),
    )
    axes.legend(frameon=False)
    return figure
