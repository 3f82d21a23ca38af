"""The panel of the notebook `explore`: sliders for one layer, their effect, and buttons for the whole model."""

import json
import threading
import time
from contextlib import suppress
from html import escape
from typing import Any

import ipywidgets as widgets
from traitlets import TraitError

from kerf.charts import plots
from kerf.config import METHODS, Calibration
from kerf.core.atomic import write_json
from kerf.core.cache import meta
from kerf.core.errors import nearest, refuse
from kerf.core.paths import data_folder
from kerf.models import registry
from kerf.workbench.interactive.background import BackgroundBuild, latest_request
from kerf.workbench.interactive.layer_explorer import LayerConfig, LayerResult, LayerSession
from kerf.workbench.interactive.save_candidate import add_candidate
from kerf.workbench.report.rendering import render

GROUPS = {"16": 16, "32": 32, "64": 64, "96": 96, "128": 128, "192": 192, "whole row": None}
CHOICES = ("method", "bits", "group_size", "clip", "sparsity")  # in the order of LayerConfig
REMEMBERED = (*CHOICES, "experiment", "candidate", "layer")


def _control(kind: type[widgets.ValueWidget], description: str, **options: Any) -> Any:
    options["layout"] = widgets.Layout(width="auto", max_width="34em")
    return kind(description=description, style={"description_width": "7em"}, **options)


def _button(description: str, icon: str, **options: Any) -> widgets.Button:
    layout = widgets.Layout(width="max-content", flex="0 0 auto")
    return widgets.Button(description=description, icon=icon, layout=layout, **options)


class Panel:
    """Widgets over one model. `page` is what a notebook displays; the settings are stored in data/explore.json."""

    def __init__(
        self, model: str, layer: str | None = None, calibration: Calibration | None = None
    ) -> None:
        """layer: the one to show first; None: that of the last time. Raises InputError as `LayerSession` does."""
        self.calibration = calibration or Calibration()
        self._settings_file = data_folder() / "explore.json"
        self._building: BackgroundBuild | None = None
        self._make_controls(model)
        self._open(model, layer)
        self._restore(REMEMBERED if layer is None else REMEMBERED[:-1])
        self._submit = latest_request(self._show)
        self._observe()
        self.model.observe(self._model_changed, "value")
        self.build.on_click(lambda _: threading.Thread(target=self._build_all, daemon=True).start())
        self.cancel.on_click(lambda _: self._building and self._building.cancel())
        self.save.on_click(self._save)
        self._show(self.request())

    def _make_controls(self, model: str) -> None:
        models = list(dict.fromkeys([model, *registry.MODELS]))
        methods = [name for name, method in METHODS.items() if method.layer]
        slider = widgets.SelectionSlider
        self.model = _control(widgets.Dropdown, "model", options=models, value=model)
        self.layer = _control(widgets.Dropdown, "layer")
        self.method = _control(slider, "method", options=methods)
        self.bits = _control(widgets.IntSlider, "bits", value=4, min=2, max=8)
        self.group_size = _control(slider, "group size", options=GROUPS, value=64)
        self.clip = _control(slider, "clip", options=["none", "mse", "hessian"])
        self.sparsity = _control(widgets.FloatSlider, "sparsity", max=0.9, step=0.05)
        self.choices = tuple(getattr(self, name) for name in CHOICES)
        self.texts: tuple[widgets.Text, ...] = ()
        self.picture, self.numbers, self.outputs, self.status = (widgets.HTML() for _ in range(4))
        hint = "Every layer, in the background"
        self.build = _button("Compress the whole model", "cut", tooltip=hint)
        self.cancel = _button("Cancel", "stop", disabled=True)
        self.save = _button("Save as a candidate", "save")
        self.experiment = _control(widgets.Text, "experiment", value="explored")
        self.candidate = _control(widgets.Text, "candidate", placeholder="named by the settings")
        self.page = widgets.VBox()

    def _open(self, model: str, layer: str | None = None) -> None:
        """Open a model, and lay out the page with the texts of its family."""
        self.session = LayerSession(model, self.calibration)
        self.built: tuple[LayerSession, LayerConfig, Any] | None = None  # and the candidate
        names, examples = list(self.session.layers), self.session.kind.EXAMPLES
        if layer is not None and layer not in names:
            raise refuse("layer", layer, nearest(layer, names))
        self.layer.options, self.layer.value = names, layer or names[0]
        labels = ("sentence", "against") if len(examples) == 2 else ("prompt",)
        pairs = zip(labels, examples, strict=True)
        self.texts = tuple(_control(widgets.Text, label, value=text) for label, text in pairs)
        wrap = widgets.Layout(flex_flow="row wrap")
        half = widgets.Layout(flex="1 1 24em", min_width="0")
        buttons = widgets.HBox([self.save, self.build, self.cancel], layout=wrap)
        left = widgets.VBox([self.model, self.layer, *self.choices, *self.texts], layout=half)
        right = widgets.VBox([self.outputs, self.experiment, self.candidate, buttons], layout=half)
        both = widgets.HBox([left, right], layout=wrap)
        self.page.children = [both, self.status, self.numbers, self.picture]

    def _observe(self) -> None:
        for control in (self.layer, *self.choices, *self.texts):
            control.observe(self._changed, "value")

    def choice(self) -> LayerConfig:
        """The settings of the sliders."""
        return LayerConfig(*(control.value for control in self.choices))

    def request(self) -> tuple[str, LayerConfig, tuple[str, ...]]:
        """Everything that the picture depends on: layer, settings and texts."""
        return self.layer.value, self.choice(), tuple(text.value for text in self.texts)

    def _changed(self, _: object) -> None:
        if not self._building:
            slow = "GPTQ runs in the background; the sliders stay usable."
            self._set_status(slow if METHODS[self.method.value].calibration == "sequential" else "")
        self._submit(self.request())

    def _model_changed(self, change: Any) -> None:
        if change.new != self.session.model:
            self._submit(change.new)

    def _show(self, request: Any) -> None:
        """Show the result of a request, or open the model that it names."""
        try:
            if isinstance(request, str):
                self._switch(request)
                request = self.request()
            layer, choice, texts = request
            started = time.perf_counter()
            cut = self.session.cut(layer, choice)
            weights = cut.before.flatten().numpy(), cut.after().flatten().numpy()
            alt = f"{layer}: histogram of its weights and of the grid's points; image of the error by group."
            self.picture.value = plots.as_html(
                plots.layer_cut(*weights, cut.by_group().numpy()), alt
            )
            seconds = time.perf_counter() - started
            self.numbers.value = render("layer.html.j2", cut=cut, seconds=seconds)
            self.outputs.value = self._outputs_html(texts, cut)
            if METHODS[choice.method].calibration == "sequential" and not self._building:
                self._set_status("GPTQ is done.")
        except Exception as error:  # a wrong setting must not end the thread
            self._set_error(error)
        finally:
            self._remember()

    def _switch(self, model: str) -> None:
        self._set_status(f"Opening {escape(model)} and calibrating it …")
        try:
            self._open(model)
        except Exception:
            self.model.value = self.session.model  # it is still open
            raise
        self._observe()

    def _outputs_html(self, texts: tuple[str, ...], cut: LayerResult) -> str:
        """A table of the model's outputs: of the baseline, with one layer compressed, and with all layers if built."""
        columns = {f"{cut.name.rpartition('.')[2]} alone cut": self.session.output_diff(texts, cut)}
        if self.built and self.built[:2] == (self.session, cut.choice):
            columns["all layers cut"] = self.session.output_diff(texts, candidate=self.built[2])
        rows = [(what, baseline) for what, baseline, _ in next(iter(columns.values()))]
        after = {title: {row[0]: row[2] for row in column} for title, column in columns.items()}
        return render("outputs.html.j2", columns=after, rows=rows)

    def _build_all(self) -> None:
        """Compress every layer in a process of its own, then add the outputs of the whole candidate."""
        session, choice = self.session, self.choice()  # another model may be opened meanwhile
        self.build.disabled, self.cancel.disabled = True, False
        building = self._building = BackgroundBuild(session.model, choice.steps(), self.calibration)
        started = time.monotonic()
        try:
            doing = f"Compressing every layer of {escape(session.model)}"
            while not building.over(within=0.5):
                self._set_status(f"{doing}: {time.monotonic() - started:.0f} s …")
            folder = building.result()
            self.built = session, choice, registry.load(folder)
            self._submit(self.request())
            size = f"{meta(folder)['result']['bytes_on_disk'] / 1e6:.1f} MB on disk"
            seconds = time.monotonic() - started
            self._set_status(f"Every layer compressed in {seconds:.0f} s: {size}.")
        except Exception as error:  # nobody watches this thread
            self._set_error(error)
        finally:
            self._building, self.build.disabled, self.cancel.disabled = None, False, True

    def _save(self, _: object) -> None:
        experiment, model, choice = self.experiment.value, self.session.model, self.choice()
        group = f"g{choice.group_size}" if choice.group_size else "row"
        name = f"int{choice.bits}-{choice.method}-{group}"
        name += f"-{choice.clip}" if choice.clip != "none" else ""
        name += f"-sparse{round(100 * choice.sparsity)}" if choice.sparsity else ""
        name = self.candidate.value or name
        try:
            path = add_candidate(experiment, model, self.calibration, name, choice.steps())
            command = f"<code>kerf run {escape(path.stem)}</code>"
            self._set_status(f"{escape(name)} is in {escape(path.name)}; run it with {command}")
        except ValueError as refusal:
            self._set_error(refusal)

    def _set_status(self, html: str) -> None:
        self.status.value = f'<div role="status">{html}</div>'

    def _set_error(self, error: Exception) -> None:
        line = str(error).partition("\n")[0] or type(error).__name__
        self._set_status(f"<strong>{escape(line)}</strong>")

    def _remember(self) -> None:
        """Store the settings of the model, for the next start."""
        settings = {name: getattr(self, name).value for name in REMEMBERED}
        settings["texts"] = [text.value for text in self.texts]
        self._settings_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._settings_file, {**self._stored(), self.session.model: settings})

    def _stored(self) -> dict:
        try:
            content = json.loads(self._settings_file.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _restore(self, names: tuple[str, ...]) -> None:
        """Set the controls `names` and the texts as they were the last time, as far as the values are still valid."""
        stored = self._stored().get(self.session.model)
        if not isinstance(stored, dict):
            return
        pairs = [(getattr(self, name), stored[name]) for name in names if name in stored]
        for control, value in [*pairs, *zip(self.texts, stored.get("texts") or [], strict=False)]:
            with suppress(TraitError):
                control.value = value
