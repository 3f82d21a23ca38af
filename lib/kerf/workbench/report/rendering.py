"""Render the templates of `kerf.workbench.templates`: HTML is escaped automatically, Markdown by the filter `plain`."""

from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from kerf.workbench.report.text_format import TONES, describe, interval, moment, number, plain

TEMPLATES = Path(__file__).parents[1] / "templates"


def render(template: str, **values: object) -> str:
    """The text of a template, filled in."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (number, interval, describe, moment, plain)
    environment.filters.update({function.__name__: function for function in formats})
    environment.filters["link"] = lambda path: quote(str(path))
    css = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    environment.globals.update(zip=zip, tones=TONES, css=css)
    return environment
