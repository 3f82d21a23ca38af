"""Put executed notebooks into docs/notebooks, where the site takes its notebook pages from.

The newest copy that a finished run left in reports/ is used where there is one. Otherwise the notebook is executed with
papermill on a small calibration sample, so that a clean clone builds the site in a few minutes; finished stages are taken from
the cache. Each page states which of the two it is.
"""

import os
import sys
from pathlib import Path

import nbformat
import papermill

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "notebooks"
FOUR_BITS = {"method": "gptq", "bits": 4, "group_size": 64, "clip": "hessian"}
SMALL = {  # parameters of those that are quick enough; `compare` takes the candidate that `quantize` made
    "calibrate": {"samples": 48},
    "quantize": {"samples": 48, **FOUR_BITS},
    "prune": {"samples": 16},
    "kernels": {"samples": 48},
    "compare": {"samples": 48, "sentences": 60, "passages": 60, "steps": [{"quantize": FOUR_BITS}]},
}
STAGES = (*SMALL, "reconstruct")  # training takes minutes: a page of it needs a finished run


def title(path: Path) -> str:
    """The heading of a notebook, by which its executed copies are known: a report names them by their step."""
    return nbformat.read(path, as_version=4).cells[0].source.partition("\n")[0]


def finished(name: str) -> Path | None:
    """The newest executed copy of a notebook that a run left in reports/, or None."""
    wanted = title(ROOT / "notebooks" / f"{name}.ipynb")
    left = [
        path for path in (ROOT / "reports").glob("*/*/*.ipynb") if ".partial" not in path.suffixes
    ]
    newest = sorted(left, key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in newest if title(path) == wanted), None)


def page(name: str) -> None:
    """Write docs/notebooks/<name>.ipynb with its outputs and a line that says where they come from."""
    source, target = finished(name), PAGES / f"{name}.ipynb"
    if source:
        note = f"The outputs below come from the run in `{source.parent.relative_to(ROOT)}`."
        content = nbformat.read(source, as_version=4)
    else:
        given = ", ".join(f"`{key}={value!r}`" for key, value in SMALL[name].items())
        note = f"This page was executed on a small sample when the site was built, so its figures are illustrative. It used {given}."
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb", target, SMALL[name], progress_bar=False
        )
        content = nbformat.read(target, as_version=4)
    content.cells[0].source += f"\n\n```{{note}}\n{note}\n```"
    nbformat.write(content, target)


def main() -> int:
    """Prepare every page; papermill names the notebook and the cell of a failure."""
    os.environ.setdefault("KERF_ROOT", str(ROOT))
    PAGES.mkdir(exist_ok=True)
    for old in PAGES.glob("*.ipynb"):
        old.unlink()
    for name in (name for name in STAGES if name in SMALL or finished(name)):
        print(f"docs/notebooks/{name}.ipynb", flush=True)
        page(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
