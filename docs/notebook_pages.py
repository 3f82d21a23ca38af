"""Put executed notebooks into docs/notebooks, where the site takes its notebook pages from.

A page that a finished run left in reports/ is used where there is one, the newest first. Every other notebook is executed
with papermill on a small calibration sample, so that a clean clone builds the site in a few minutes; finished stages are
taken from the cache. A page says which of the two it is.
"""

import os
import sys
from pathlib import Path

import nbformat
import papermill

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "notebooks"
FOUR_BITS = {"quantize": {"method": "gptq", "bits": 4, "group_size": 64, "clip": "hessian"}}
SMALL = {  # parameters under which each notebook takes well under a minute
    "calibrate": {"samples": 48},
    "quantize": {"samples": 48, "bits": 4, "group_size": 64},
    "prune": {"samples": 48},
    "compare": {"samples": 48, "sentences": 100, "passages": 100, "steps": [FOUR_BITS]},
}


def finished(name: str) -> Path | None:
    """The newest executed copy of a notebook that a run left in reports/, or None."""
    found = (ROOT / "reports").glob(f"*/*/{name}.ipynb")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def page(name: str) -> None:
    """Write docs/notebooks/<name>.ipynb with its outputs and a line that says where they come from."""
    source, target = finished(name), PAGES / f"{name}.ipynb"
    if source:
        note = f"The outputs below come from the run in `{source.parent.relative_to(ROOT)}`."
        content = nbformat.read(source, as_version=4)
    else:
        given = ", ".join(f"`{key}={value!r}`" for key, value in SMALL[name].items())
        note = f"This page was executed on a small sample when the site was built, so its figures are illustrative. It used {given}."
        papermill.execute_notebook(ROOT / "notebooks" / f"{name}.ipynb", target, SMALL[name], progress_bar=False)
        content = nbformat.read(target, as_version=4)
    title = next(cell for cell in content.cells if cell.cell_type == "markdown")
    title.source += f"\n\n```{{note}}\n{note}\n```"
    nbformat.write(content, target)


def main() -> int:
    """Prepare every page; papermill names the notebook and the cell of a failure."""
    os.environ.setdefault("KERF_ROOT", str(ROOT))
    PAGES.mkdir(exist_ok=True)
    for name in SMALL:
        print(f"docs/notebooks/{name}.ipynb", flush=True)
        page(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
