"""Sphinx configuration: MyST Markdown, executed notebooks, and mathematics as MathML, so that the site needs no network."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE / "_ext"), str(HERE.parent / "lib")]

import kerf  # noqa: E402

project, author, copyright = "Kerf", "The Kerf authors", "The Kerf authors, Apache-2.0"
version = release = kerf.__version__
extensions = ["myst_nb", "mathml"]
exclude_patterns = ["_build", "runs", "_ext"]
highlight_language = "text"
html_theme = "furo"
html_title = f"Kerf {version}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["kerf.css"]
html_show_sourcelink = False
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # docs/notebook_pages.py executes them
nb_merge_streams = True
