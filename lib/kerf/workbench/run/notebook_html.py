"""An executed notebook as one HTML page without script and network; the last output of a widget takes its place."""

import re
from pathlib import Path
from typing import Any

import nh3

from kerf.core.atomic import write_page

ATTRIBUTES = {"alt", "aria-label", "dir", "lang", "role", "scope", "tabindex", "title"}
ATTRIBUTES |= {"class", "colspan", "height", "id", "rowspan", "style", "width"}
TEMPLATES = Path(__file__).parents[1] / "templates"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
BANNER = "papermill-error-cell-tag"


def notebook_to_html(path: Path) -> Path:
    """Write the notebook `path` beside itself as .html and return the new path."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    _replace_widgets(notebook)
    texts: list[str] = []
    tags = {tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    for cell in notebook.cells:
        if BANNER in cell.metadata.get(
            "tags", []
        ):  # its inline colours would override the style sheet
            cell.source = re.sub(r'\sstyle="[^"]*"', "", cell.source)
        elif cell.cell_type == "markdown":
            texts.append(cell.source)
    heading = re.search(r"^#\s+(.+)$", "\n".join(texts), re.M)
    exporter = HTMLExporter(
        template_name="notebook",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"inert": inert, "alt_text": alt_text},
    )
    sheets = ("style.css", "notebook/notebook.css")
    page = {
        "css": "".join((TEMPLATES / sheet).read_text() for sheet in sheets),
        "title": re.sub(r"[`*_]", "", heading[1]).strip() if heading else path.stem,
        "source": path.name,
        "injected": "injected-parameters" in tags,
    }
    body, _ = exporter.from_notebook_node(notebook, resources={"page": page})
    return write_page(path.with_suffix(".html"), body)


def inert(html: str) -> str:
    """A notebook's own HTML without scripts, handlers and links that load something; the style of tables remains."""

    def without_data_links(tag: str, attribute: str, value: str) -> str | None:
        return None if tag == "a" and value.strip().lower().startswith("data:") else value

    return nh3.clean(
        html,
        tags=nh3.ALLOWED_TAGS | {"figcaption", "figure", "section", "style"},
        clean_content_tags={"script"},
        attributes={"*": ATTRIBUTES, "a": {"href"}, "img": {"src"}},
        attribute_filter=without_data_links,
        url_schemes={"data", "http", "https", "mailto"},
        link_rel=None,
    )


def alt_text(output: dict, mime_type: str) -> str:
    """The description of a picture that the notebook recorded."""
    metadata = output.get("metadata", {})
    description = metadata.get(mime_type, {}).get("alt") or metadata.get("alt")
    return description or "Figure, described by the text around it"


def _replace_widgets(notebook: Any) -> None:
    """Replace each widget by its last outputs."""
    from nbformat import from_dict

    models = notebook.metadata.pop("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for cell in notebook.cells:
        outputs = []
        for output in cell.get("outputs", []):
            view = output.get("data", {}).pop(WIDGET_VIEW, None)
            shown = _widget_outputs(view["model_id"], models, set()) if view else []
            outputs += [from_dict(item) for item in shown] or [output]
        if "outputs" in cell:
            cell.outputs = outputs


def _widget_outputs(model_id: str, models: dict[str, dict], seen: set[str]) -> list[dict]:
    """Last outputs of a widget and of its children, depth first."""
    if model_id in seen:
        return []
    seen.add(model_id)
    state = models.get(model_id, {}).get("state", {})
    outputs = list(state.get("outputs", []))
    for child in state.get("children", []):
        outputs += _widget_outputs(str(child).removeprefix("IPY_MODEL_"), models, seen)
    return outputs
