"""The panel of `explore`: sliders for one layer, the picture, numbers and answers that follow them, and buttons for the
whole model. What a choice does is computed by `kerf.workbench.interactive.layer_explorer`; here is only what one sees and presses.
"""

import json
import threading
import time
from html import escape

import ipywidgets as widgets
from traitlets import TraitError

from kerf.charts import plots
from kerf.config import METHODS, Calibration
from kerf.core.atomic import write_json
from kerf.core.cache import meta
from kerf.core.errors import nearest, refuse
from kerf.core.paths import data_folder
from kerf.models import registry
from kerf.workbench.interactive.background import BackgroundBuild, LatestRequest
from kerf.workbench.interactive.layer_explorer import LayerConfig, LayerResult, LayerSession
from kerf.workbench.interactive.save_candidate import add_candidate

GROUPS = {"16": 16, "32": 32, "64": 64, "96": 96, "128": 128, "192": 192, "whole row": None}
WIDE = {
    "layout": widgets.Layout(width="auto", max_width="34em"),
    "style": {"description_width": "7em"},
}
REMEMBERED = (
    "layer",
    "method",
    "bits",
    "group_size",
    "clip",
    "sparsity",
    "experiment",
    "candidate",
)


class Panel:
    """Widgets over one model. `page` is what a notebook displays; the choice is kept in data/explore.json."""

    def __init__(
        self, model: str, layer: str | None = None, calibration: Calibration | None = None
    ) -> None:
        """layer: the first one shown; None: the one that was chosen the last time. Raises InputError as `LayerSession` does."""
        self.calibration = calibration or Calibration()
        self._kept = data_folder() / "explore.json"
        self._make_controls(model)
        self._load(model, layer)
        self._restore(REMEMBERED if layer is None else REMEMBERED[1:])
        self._newest = LatestRequest(self._show)
        for control in (self.layer, *self.choices, *self.texts):
            control.observe(self._changed, "value")
        self.model.observe(
            lambda change: change.new != self.subject.model and self._newest.ask(change.new),
            "value",
        )
        self.build.on_click(
            lambda _: threading.Thread(target=self._make_whole, daemon=True).start()
        )
        self.cancel.on_click(self._cancel)
        self.save.on_click(self._save)
        self._building: BackgroundBuild | None = None
        self._show(self.wish())

    def _make_controls(self, model: str) -> None:
        known = list(dict.fromkeys([model, *registry.MODELS]))
        self.model = widgets.Dropdown(options=known, value=model, description="model", **WIDE)
        self.layer = widgets.Dropdown(description="layer", **WIDE)
        self.method = widgets.SelectionSlider(options=_methods(), description="method", **WIDE)
        self.bits = widgets.IntSlider(value=4, min=2, max=8, description="bits", **WIDE)
        self.group_size = widgets.SelectionSlider(
            options=GROUPS, value=64, description="group size", **WIDE
        )
        self.clip = widgets.SelectionSlider(
            options=["none", "mse", "hessian"], description="clip", **WIDE
        )
        self.sparsity = widgets.FloatSlider(
            max=0.9, step=0.05, description="sparsity", continuous_update=True, **WIDE
        )
        self.choices = (self.method, self.bits, self.group_size, self.clip, self.sparsity)
        self.texts: tuple[widgets.Text, ...] = ()
        self.picture, self.numbers, self.answers, self.status = (widgets.HTML() for _ in range(4))
        fitting = widgets.Layout(width="max-content", flex="0 0 auto")
        self.build = widgets.Button(
            description="Cut the whole model",
            icon="cut",
            tooltip="Every layer, in the background",
            layout=fitting,
        )
        self.cancel = widgets.Button(
            description="Cancel", icon="stop", disabled=True, layout=fitting
        )
        self.experiment = widgets.Text(value="explored", description="experiment", **WIDE)
        self.candidate = widgets.Text(
            value="", placeholder="named by the choice", description="candidate", **WIDE
        )
        self.save = widgets.Button(description="Save as a candidate", icon="save", layout=fitting)
        self.page = widgets.VBox()

    def _load(self, model: str, layer: str | None = None) -> None:
        """Open a model, and lay the page out for what its kind is asked."""
        self.subject, self.whole = LayerSession(model, self.calibration), None
        names = list(self.subject.layers)
        if layer is not None and layer not in names:
            raise refuse("layer", layer, nearest(layer, names))
        self.layer.options, self.layer.value = names, layer or names[0]
        labels = ("sentence", "against") if len(self.subject.kind.EXAMPLES) == 2 else ("prompt",)
        self.texts = tuple(
            widgets.Text(value=text, description=label, continuous_update=True, **WIDE)
            for text, label in zip(self.subject.kind.EXAMPLES, labels, strict=True)
        )
        buttons = widgets.HBox(
            [self.save, self.build, self.cancel], layout=widgets.Layout(flex_flow="row wrap")
        )
        half = widgets.Layout(flex="1 1 24em", min_width="0")
        left = widgets.VBox([self.model, self.layer, *self.choices, *self.texts], layout=half)
        right = widgets.VBox([self.answers, self.experiment, self.candidate, buttons], layout=half)
        both = widgets.HBox([left, right], layout=widgets.Layout(flex_flow="row wrap"))
        self.page.children = [both, self.status, self.numbers, self.picture]

    def choice(self) -> LayerConfig:
        """What the sliders say now."""
        return LayerConfig(*(control.value for control in self.choices))

    def wish(self) -> tuple:
        """Layer, choice and texts: everything that the picture depends on."""
        return self.layer.value, self.choice(), tuple(text.value for text in self.texts)

    def _changed(self, _) -> None:
        if not self._building:
            self._say(
                "GPTQ is at work in the background; the sliders stay free."
                if _is_sequential(self.method.value)
                else ""
            )
        self._newest.ask(self.wish())

    def _show(self, wish: object) -> None:
        """Draw what a wish asks for, or open another model."""
        try:
            if isinstance(wish, str):
                self._say(f"Opening {escape(wish)} and calibrating it …")
                try:
                    self._load(wish)
                except Exception:
                    self.model.value = self.subject.model  # the one that is still there
                    raise
                for text in (self.layer, *self.texts):
                    text.observe(self._changed, "value")
                wish = self.wish()
            layer, choice, texts = wish
            started = time.perf_counter()
            cut = self.subject.cut(layer, choice)
            self.picture.value = drawn(cut)
            self.numbers.value = told(cut, time.perf_counter() - started)
            self.answers.value = self._answered(texts, cut)
            if _is_sequential(choice.method) and not self._building:
                self._say("GPTQ is done.")
        except Exception as error:  # a wrong choice is told, and the next one is free
            self._say(
                f"<strong>{escape(str(error).splitlines()[0] if str(error) else type(error).__name__)}</strong>"
            )
        finally:
            self._remember()

    def _answered(self, texts, cut: LayerResult) -> str:
        columns = {f"{cut.name.rpartition('.')[2]} alone cut": self.subject.output_diff(texts, cut)}
        if self.whole and self.whole[:2] == (self.subject, cut.choice):
            columns["all layers cut"] = self.subject.output_diff(texts, candidate=self.whole[2])
        first = next(iter(columns.values()))
        after = {title: {what: value for what, _, value in rows} for title, rows in columns.items()}
        head = "".join(
            f'<th scope="col">{escape(title)}</th>' for title in ("", "baseline", *columns)
        )
        body = "".join(
            f'<tr><th scope="row">{escape(what)}</th><td>{before:.4f}</td>'
            + "".join(
                f"<td>{values[what]:.4f}</td>" if what in values else "<td>–</td>"
                for values in after.values()
            )
            + "</tr>"
            for what, before, _ in first
        )
        return f'<table aria-label="Answers" style="border-spacing: 1em 0; margin: .5em 0 1em">{f"<tr>{head}</tr>"}{body}</table>'

    def _make_whole(self) -> None:
        """Cut every layer in a process of its own, then let the answers show it too."""
        subject, choice = self.subject, self.choice()  # another model may be opened meanwhile
        self.build.disabled, self.cancel.disabled = True, False
        self._building = BackgroundBuild(subject.model, choice.steps(), self.calibration)
        try:
            while not self._building.over(within=0.5):
                self._say(
                    f"Cutting every layer of {escape(subject.model)}: {self._building.seconds():.0f} s …"
                )
            folder = self._building.result()
            self.whole = subject, choice, registry.load(folder)
            self._newest.ask(self.wish())
            self._say(
                f"Every layer cut in {self._building.seconds():.0f} s: {meta(folder)['result']['bytes_on_disk'] / 1e6:.1f} MB on disk."
            )
        except Exception as error:  # told, not raised into a thread that nobody watches
            self._say(f"<strong>{escape(str(error))}</strong>")
        finally:
            self._building, self.build.disabled, self.cancel.disabled = None, False, True

    def _cancel(self, _) -> None:
        if self._building:
            self._building.cancel()

    def _save(self, _) -> None:
        name = self.candidate.value or default_name(self.choice())
        try:
            path = add_candidate(
                self.experiment.value,
                self.subject.model,
                self.calibration,
                name,
                self.choice().steps(),
            )
            self._say(
                f"{escape(name)} is in {escape(path.name)}; run it with <code>kerf run {escape(path.stem)}</code>"
            )
        except ValueError as refusal:
            self._say(f"<strong>{escape(str(refusal))}</strong>")

    def _say(self, html: str) -> None:
        self.status.value = f'<div role="status">{html}</div>'

    def _remember(self) -> None:
        kept = {name: getattr(self, name).value for name in REMEMBERED} | {
            "texts": [text.value for text in self.texts]
        }
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._kept, {**self._read(), self.subject.model: kept})

    def _read(self) -> dict:
        try:
            found = json.loads(self._kept.read_text())
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    def _restore(self, names: tuple[str, ...]) -> None:
        """The choice of the last time, as far as it still fits; names: what is taken from it."""
        kept = self._read().get(self.subject.model)
        if not isinstance(kept, dict):
            return
        pairs = [(getattr(self, name), kept.get(name)) for name in names if name in kept]
        for control, value in [*pairs, *zip(self.texts, kept.get("texts") or [], strict=False)]:
            try:
                control.value = value
            except TraitError:
                continue


def default_name(choice: LayerConfig) -> str:
    """A candidate's name that tells its choice."""
    group = f"g{choice.group_size}" if choice.group_size else "row"
    sparse = f"-sparse{round(100 * choice.sparsity)}" if choice.sparsity else ""
    clip = f"-{choice.clip}" if choice.clip != "none" else ""
    return f"int{choice.bits}-{choice.method}-{group}{clip}{sparse}"


def drawn(cut: LayerResult) -> str:
    """The picture of a cut as HTML, described for those who do not see it."""
    figure = plots.cut(
        cut.before.flatten().numpy(), cut.after().flatten().numpy(), cut.by_group().numpy()
    )
    return plots.as_html(
        figure,
        f"{cut.name}: histogram of its weights and of the grid's points; image of the error by group.",
    )


def told(cut: LayerResult, seconds: float) -> str:
    """The numbers of a cut, as one line; seconds: that it took to show it."""
    lost = "no output to lose" if cut.error is None else f"{cut.error:.4%} of its output lost"
    full = 4 * cut.before.numel()
    return (
        f'<div aria-live="polite"><strong>{escape(cut.name)}</strong>, {cut.before.shape[0]} × {cut.before.shape[1]}: <strong>{lost}</strong>, '
        f"{cut.bytes:,} bytes, {full / cut.bytes:.1f} times smaller than in float32; shown in {1000 * seconds:.0f} ms</div>"
    )


def _methods() -> list[str]:
    """Methods that quantize one layer by itself."""
    return [name for name, method in METHODS.items() if method.layer]


def _is_sequential(method: str) -> bool:
    """Whether a whole candidate differs from its layers by themselves."""
    return METHODS[method].calibration == "sequential"
