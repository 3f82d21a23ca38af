"""Draw a run's charts as inline SVG that follows the page's colours.

Text and axes take the page's text colour, series take CSS variables that have a
light and a dark value, so one drawing serves both. The same data always gives the
same bytes. Not here: choosing what to draw, and the data tables beside the charts.
"""

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import IdentityTransform

INK = "#010203"  # a colour nothing else uses: it becomes currentColor
SERIES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK]  # Okabe-Ito
MARKERS, DASHES = "osD^vPX", ["-", (0, (5, 1.5)), (0, (1.5, 1.2))]
VERDICTS = {
    "PASS": ("may be used", "o", SERIES[2]),
    "FAIL": ("may not", "X", SERIES[1]),
    "INCONCLUSIVE": ("not decided", "D", SERIES[4]),
    "NOT MEASURED": ("not measured", "v", SERIES[6]),
    None: ("baseline, or not judged", "s", INK),
}
FONT = 8.5  # points; the drawing is 72 dots an inch, so also its unit of length
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kerf",
    "text.parse_math": False,
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT - 0.5,
    "ytick.labelsize": FONT - 0.5,
    "legend.fontsize": FONT,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def fidelity_against_size(
    points: list[dict], label: str, log: bool = False, key: str = "fidelity"
) -> str:
    """One mark a candidate: `points` have name (empty: not written), mb, value, low, high, verdict and asked."""
    with matplotlib.rc_context(STYLE):
        fig, axes = _panels(1, 1, (6.4, 3.9))
        ax = axes[0]
        for point in points:
            _point(ax, point)
        for point in points:
            if point["asked"] is not None:
                ax.plot(
                    point["mb"],
                    point["asked"],
                    "_",
                    color=INK,
                    markersize=10,
                    markeredgewidth=1.1,
                    label="asked",
                )
        ax.set(
            xscale="log",
            yscale="log" if log else "linear",
            ylabel=label,
            xlabel="size on disk in MB (each step to the right is a multiple)",
        )
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(PLAIN)
        ax.yaxis.set_major_formatter(PLAIN)
        ax.margins(x=0.14, y=0.09)
        _legend(fig, ax)
        _name_points(fig, ax, points)
        named = [point for point in points if point["name"]]
        best = ", ".join(f"{p['name']} {p['value']:.4g} at {p['mb']:.1f} MB" for p in named)
        return _svg(fig, key, f"{label} against size on disk", f"One mark a candidate: {best}.")


BY_LAYER = {
    "error": ("Error by layer", "relative output error"),
    "sparsity": ("Sparsity by layer", "share that is gone"),
}


def by_layer(layers: dict[str, list[dict]], key: str) -> str:
    """`key`, error or sparsity: one panel a kind of layer, one line a candidate; empty if no numbered block has any."""
    title, label = BY_LAYER[key]
    kinds = _kinds(layers, key)
    if not kinds:
        return ""
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    with matplotlib.rc_context(STYLE):
        fig, axes = _panels(len(kinds), columns, (8.0, 0.6 + 1.6 * rows), sharey=True)
        for ax, (kind, lines) in zip(axes, kinds.items(), strict=False):
            ax.set_title(kind)
            for name, points in lines.items():
                place = list(layers).index(name)
                ax.plot(
                    *zip(*points, strict=False),
                    label=name,
                    color=SERIES[place % len(SERIES)],
                    linewidth=1.3,
                    linestyle=DASHES[place // len(SERIES) % len(DASHES)],
                    marker=MARKERS[place % len(MARKERS)],
                    markersize=3,
                )
            ax.set(yscale="log" if key == "error" else "linear")
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.yaxis.set_major_formatter(PLAIN)
            ax.yaxis.set_minor_locator(NullLocator())
        fig.supxlabel("block of the model, first to last", fontsize=FONT)
        fig.supylabel(label, fontsize=FONT)
        _legend(fig, *axes[: len(kinds)])
        said = "; ".join(
            f"{name}: largest {max(layer.get(key) or 0 for layer in found):.2g}"
            for name, found in layers.items()
            if found
        )
        return _svg(fig, f"layers-{key}", title, f"{label.capitalize()} of each layer. {said}.")


def similarity_distributions(pictures: dict[str, dict]) -> str:
    """One panel a candidate: how similar pairs of sentences are, before and after."""
    columns = min(3, len(pictures))
    rows = -(-len(pictures) // columns)
    with matplotlib.rc_context(STYLE):
        fig, axes = _panels(
            len(pictures), columns, (8.0, 0.6 + 1.4 * rows), sharex=True, sharey=True
        )
        for ax, (name, counts) in zip(axes, pictures.items(), strict=False):
            ax.set_title(name)
            ax.stairs(
                counts["baseline"],
                counts["edges"],
                fill=True,
                color=INK,
                alpha=0.22,
                label="before",
            )
            ax.stairs(
                counts["candidate"], counts["edges"], color=SERIES[1], linewidth=1.3, label="after"
            )
            ax.yaxis.set_major_locator(MaxNLocator(3))
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.xaxis.set_major_formatter(PLAIN)
        fig.supxlabel("cosine similarity of two sentences", fontsize=FONT)
        fig.supylabel("pairs of sentences", fontsize=FONT)
        _legend(fig, axes[0])
        return _svg(
            fig,
            "similarities",
            "Similarities before and after",
            "Histograms of the similarity of pairs of sentences for "
            + ", ".join(pictures)
            + ", each over the same histogram of the baseline.",
        )


def divergence_by_layer(restored: dict[str, list[dict]]) -> str:
    """One panel a candidate: the divergence that is left with one layer in float; the first row is that of none."""
    columns = min(3, len(restored))
    rows = -(-len(restored) // columns)
    with matplotlib.rc_context(STYLE):
        fig, axes = _panels(len(restored), columns, (8.0, 0.6 + 1.4 * rows))
        for ax, (name, (whole, *found)) in zip(axes, restored.items(), strict=False):
            ax.set_title(name)
            ax.axhline(whole["kl"], color=INK, linewidth=1, label="nothing in float")
            ax.plot(
                range(len(found)),
                [row["kl"] for row in found],
                "o-",
                color=SERIES[1],
                markersize=3,
                linewidth=1.3,
                label="one block in float",
            )
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.yaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_formatter(PLAIN)
        fig.supxlabel("block that is in float again, first to last", fontsize=FONT)
        fig.supylabel("mean KL divergence", fontsize=FONT)
        _legend(fig, axes[0])
        said = "; ".join(
            f"{name}: {min(found, key=lambda row: row['kl'])['layer']} leaves least"
            for name, (_, *found) in restored.items()
        )
        return _svg(
            fig, "restored", "Divergence by layer", f"What is left with one block in float. {said}."
        )


def trend(line: list[dict], name: str, label: str, key: str) -> str:
    """Fidelity of an experiment's worst release candidate from run to run; line: as `board.trends` gives it."""
    points = [
        (place, run["worst"]["fidelity"], run) for place, run in enumerate(line) if run["worst"]
    ]
    with matplotlib.rc_context(STYLE):
        fig, (ax,) = _panels(1, 1, (6.4, 1.9))
        for place, fidelity, _run in points:
            if fidelity.get("low") is not None and fidelity.get("high") is not None:
                ax.plot(
                    [place] * 2, [fidelity["low"], fidelity["high"]], color=SERIES[0], linewidth=1.2
                )
        ax.plot(
            [place for place, *_ in points],
            [fidelity["value"] for _, fidelity, _ in points],
            "o-",
            color=SERIES[0],
            markersize=4,
            linewidth=1,
        )
        ax.set_xticks(
            range(len(line)),
            [run["started"][5:16].replace("T", " ") for run in line],
            rotation=25,
            ha="right",
        )
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(PLAIN)
        ax.set(ylabel=label)
        said = ", ".join(
            f"{run['started'][:16]} {fidelity['value']:.5g}" for _, fidelity, run in points
        )
        return _svg(fig, key, f"{name} from run to run", f"{said}.") if points else ""


def _panels(count, columns, inches, **shared):
    fig = Figure(figsize=inches, dpi=72, layout="constrained")
    axes = fig.subplots(-(-count // columns), columns, squeeze=False, **shared).ravel()
    for ax in axes[count:]:
        ax.set_visible(False)
    for ax in axes[max(0, count - columns) : count]:
        ax.tick_params(labelbottom=True)  # the last panel of a column may have an unused one below
    return fig, axes


def _point(ax, point):
    said, marker, colour = VERDICTS.get(point["verdict"], VERDICTS[None])
    if point["low"] is not None and point["high"] is not None:
        ax.plot([point["mb"]] * 2, [point["low"], point["high"]], color=colour, linewidth=1.2)
    ax.plot(
        point["mb"],
        point["value"],
        marker,
        color=colour,
        markersize=6,
        markeredgewidth=0,
        label=said,
    )


def _name_points(fig, ax, points):
    """Put each name where it covers the least of the marks and of earlier names."""
    ax.autoscale_view()
    fig.draw_without_rendering()  # the layout decides where the data lies
    frame = ax.get_window_extent()
    at = [ax.transData.transform((p["mb"], p["value"])) for p in points]
    asked = [
        ax.transData.transform((p["mb"], p["asked"])) for p in points if p["asked"] is not None
    ]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in at] + [
        (x - 5, y - 1, x + 5, y + 1) for x, y in asked
    ]
    named = [(p["name"], *place) for p, place in zip(points, at, strict=True) if p["name"]]
    for name, x, y in sorted(named, key=lambda item: -item[2]):
        wide = 0.58 * FONT * len(name)
        places = [
            (
                x + dx - wide * left,
                y + dy - FONT / 2,
                x + dx + wide * (1 - left),
                y + dy + FONT / 2,
                left,
            )
            for dy in (0, 5, -5, 10, -10, 16, -16, 24, -24)
            for dx, left in ((7, 0), (-7, 1))
        ]
        best = min(
            places,
            key=lambda box: (
                sum(_overlap(box, other) for other in taken)
                + 50 * (box[0] < frame.x0 or box[2] > fig.bbox.x1 or box[1] < frame.y0)
            ),
        )
        taken.append(best)
        ax.text(
            best[2] if best[4] else best[0],
            (best[1] + best[3]) / 2,
            name,
            va="center_baseline",
            ha="right" if best[4] else "left",
            transform=IdentityTransform(),
        )


def _overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _legend(fig, *axes):
    entries = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=False):
            entries.setdefault(label, handle)
    fig.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper left",
        ncols=min(5, len(entries)),
        handlelength=2.2,
        columnspacing=1.4,
        borderpad=0,
    )


def _kinds(layers, key):
    """{kind: {candidate: [(block, value of key)]}}; the first number in a name is its block."""
    kinds = {}
    for name, found in layers.items():
        for layer in found:
            split = re.fullmatch(r".*?\.(\d+)\.(.+)", layer["name"])
            if split and (layer.get(key) or 0) > 0:
                kind = kinds.setdefault(split[2], {})
                kind.setdefault(name, []).append((int(split[1]), layer[key]))
    return kinds


def _svg(fig, name, title, text):
    buffer = io.StringIO()
    fig.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
    )
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)  # several charts share a page
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's own
    for place, colour in enumerate(SERIES[:-1]):
        svg = svg.replace(colour, f"var(--series-{place}, {colour})")
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box}'
    )
    head += (
        f' role="img" aria-label="{escape(title)}. {escape(text)}"><title>{escape(title)}</title>'
    )
    return head + svg[svg.index(">") + 1 :].replace(INK, "currentColor").strip()
