"""Render the templates of `kerf.workbench.templates`: HTML is escaped automatically, Markdown by the filter `plain`."""

from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from kerf.workbench.report.answers import TONES
from kerf.workbench.report.text_format import (
    conventions,
    describe,
    interval,
    label_of,
    moment,
    number,
    plain,
)

TEMPLATES = Path(__file__).parents[1] / "templates"
FILTERS = (conventions, number, interval, describe, label_of, moment, plain)
CSS = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
_environment = Environment(loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True)
_environment.autoescape = select_autoescape(["html.j2"])
_environment.filters |= {function.__name__: function for function in FILTERS}
_environment.filters["link"] = lambda path: quote(str(path))
_environment.globals |= {"zip": zip, "tones": TONES, "css": CSS}


def render(template: str, **values: object) -> str:
    """The text of a template, filled in."""
    return _environment.get_template(template).render(values)
