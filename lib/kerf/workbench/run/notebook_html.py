"""Turn an executed notebook into one page that needs no script and no network.

Not here: running notebooks. Widgets are replaced by the output they last showed,
because without their script nothing of them would be left.
"""

import re
from pathlib import Path

import nh3

from kerf.core.atomic import write_page

ATTRIBUTES = {
    "alt",
    "aria-label",
    "class",
    "colspan",
    "dir",
    "height",
    "id",
    "lang",
    "role",
    "rowspan",
    "scope",
    "style",
    "tabindex",
    "title",
    "width",
}
TEMPLATES = Path(__file__).parents[1] / "templates"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
BANNER = "papermill-error-cell-tag"


def notebook_to_html(path: Path) -> Path:
    """Write `path` (.ipynb) beside itself as .html and return that file."""
    import nbformat
    from nbconvert import HTMLExporter

    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    _replace_widgets(notebook)
    _restyle_banner(notebook)
    exporter = HTMLExporter(
        template_name="notebook",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"inert": inert, "alt_text": alt_text},
    )
    css = (TEMPLATES / "style.css").read_text() + (
        TEMPLATES / "notebook" / "notebook.css"
    ).read_text()
    page = {
        "css": css,
        "title": _title(notebook, path.stem),
        "source": path.name,
        "injected": any("injected-parameters" in _tags(cell) for cell in notebook.cells),
    }
    body, _ = exporter.from_notebook_node(notebook, resources={"page": page})
    return write_page(path.with_suffix(".html"), body)


def inert(html: str) -> str:
    """A notebook's own HTML without scripts, handlers and what loads something; styles of its tables stay."""
    return nh3.clean(
        html,
        tags=nh3.ALLOWED_TAGS | {"figcaption", "figure", "section", "style"},
        clean_content_tags={"script"},
        attributes={"*": ATTRIBUTES, "a": {"href"}, "img": {"src"}},
        attribute_filter=_without_data_links,
        url_schemes={"data", "http", "https", "mailto"},
        link_rel=None,
    )


def _without_data_links(tag: str, attribute: str, value: str) -> str | None:
    return None if tag == "a" and value.strip().lower().startswith("data:") else value


def alt_text(output: dict, kind: str) -> str:
    """The description that the notebook recorded for a picture."""
    metadata = output.get("metadata", {})
    return (
        metadata.get(kind, {}).get("alt")
        or metadata.get("alt")
        or "Figure, described by the text around it"
    )


def _tags(cell):
    return cell.metadata.get("tags", [])


def _title(notebook, fallback):
    for cell in notebook.cells:
        heading = (
            cell.cell_type == "markdown"
            and BANNER not in _tags(cell)
            and re.search(r"^#\s+(.+)$", cell.source, re.M)
        )
        if heading:
            return re.sub(r"[`*_]", "", heading[1]).strip()
    return fallback


def _restyle_banner(notebook):
    # papermill writes its colours into the tag, where a style sheet cannot reach
    for cell in notebook.cells:
        if BANNER in _tags(cell):
            cell.source = re.sub(r'\sstyle="[^"]*"', "", cell.source)


def _replace_widgets(notebook):
    from nbformat import from_dict

    models = notebook.metadata.pop("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for cell in notebook.cells:
        outputs = []
        for output in cell.get("outputs", []):
            view = output.get("data", {}).pop(WIDGET_VIEW, None)
            shown = _shown_by(view["model_id"], models, set()) if view else []
            outputs += [from_dict(item) for item in shown] or [output]
        if "outputs" in cell:
            cell.outputs = outputs


def _shown_by(model_id, models, seen):
    if model_id in seen:
        return []
    seen.add(model_id)
    state = models.get(model_id, {}).get("state", {})
    found = list(state.get("outputs", []))
    for child in state.get("children", []):
        found += _shown_by(str(child).removeprefix("IPY_MODEL_"), models, seen)
    return found
