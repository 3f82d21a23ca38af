"""Figures of the notebooks. Each function takes plain numbers and returns a matplotlib Figure."""

import io

from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"  # Okabe and Ito: safe for the colour-blind


def show(figure: Figure, alt: str) -> None:
    """Display a figure as PNG with text for those who cannot see it."""
    from IPython.display import Image, display

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    display(Image(png.getvalue(), alt=alt), metadata={"image/png": {"alt": alt}})


def _axes(width: float = 8, height: float = 3.4):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def outliers(groups: list[dict]) -> Figure:
    """Peak over root mean square of every layer's input, in the order the layers run."""
    figure, axes = _axes()
    axes.bar(range(len(groups)), [g["peak_over_rms"] for g in groups], color=BLUE)
    axes.set_xticks(range(len(groups)), [short(g["names"]) for g in groups], rotation=90, fontsize=7)
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
    axes.set_xticks(range(len(known)), [short([layer["name"]]) for layer in known], rotation=90, fontsize=6)
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


def similarity_distributions(picture: dict) -> Figure:
    """Pairwise sentence similarities of both models."""
    figure, axes = _axes(height=3)
    axes.stairs(picture["baseline"], picture["edges"], color=BLUE, fill=True, alpha=0.5, label="baseline")
    axes.stairs(picture["candidate"], picture["edges"], color=ORANGE, linewidth=1.5, label="candidate")
    _ = axes.set(xlabel="cosine similarity of two sentences", ylabel="pairs")
    axes.legend(frameon=False)
    return figure


def cosines(values) -> Figure:
    """Cosine of every sentence to the baseline, sorted."""
    figure, axes = _axes(height=2.8)
    axes.plot([i / len(values) for i in range(len(values))], sorted(values), color=BLUE)
    _ = axes.set(xlabel="share of sentences", ylabel="cosine to the baseline")
    return figure
