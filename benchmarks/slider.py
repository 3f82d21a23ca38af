"""How soon the picture of `explore` follows a slider: from the key's event in the browser to the new picture there.

JupyterLab and Chromium as a researcher has them, MiniLM's widest layer, rounding to nearest with and without a
clip search. Median and 95 % of all presses; at most 300 ms is the limit of what feels immediate. Needs Chromium.

    python benchmarks/slider.py [--presses 40]
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import papermill

from kerf.core.paths import data_folder, root

sys.path.insert(0, str(root() / "tests"))
from support.lab import SECONDS, browser, run_all, served, slider

LIMIT = 300  # ms
LAYER = "encoder.layer.3.intermediate.dense"
# Milliseconds from the key to the new picture, decoded and drawn.
FOLLOW = """() => { window.taken = null; const image = () => document.querySelector('.jp-OutputArea-output .widget-html img');
  const before = image().src; const started = performance.now();
  const look = () => { const now = image(); if (now && now.src !== before && now.complete) window.taken = performance.now() - started;
                       else requestAnimationFrame(look); }; look(); }"""


def followed(page, name: str, key: str) -> float:
    """Milliseconds that the picture takes to follow one press of a key on a slider."""
    slider(page, name).focus()
    page.evaluate(FOLLOW)
    page.keyboard.press(key)
    return page.wait_for_function("() => window.taken", timeout=SECONDS).json_value()


def main() -> None:
    """Print a row for each way of rounding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presses", type=int, default=40)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "notebooks").mkdir()
        papermill.execute_notebook(
            root() / "notebooks" / "explore.ipynb",
            scratch / "notebooks" / "here.ipynb",
            {"layer": LAYER},
            prepare_only=True,
        )
        own = {"KERF_ROOT": str(root()), "KERF_DATA": str(scratch / "data")}
        (scratch / "data").mkdir()
        (scratch / "data" / "sources").symlink_to(data_folder() / "sources")
        with served(scratch / "notebooks", scratch, own) as address, browser() as opened:
            page = opened.new_page(viewport={"width": 1440, "height": 1100})
            run_all(page, address.format("here.ipynb"))
            page.get_by_text("the hardest layer").first.wait_for(timeout=SECONDS)
            for title, presses in (("clip none", 0), ("clip mse", 1)):
                for _ in range(presses):
                    followed(page, "clip", "ArrowRight")
                followed(page, "bits", "ArrowRight")
                taken = [
                    followed(page, "bits", "ArrowLeft" if turn % 2 else "ArrowRight")
                    for turn in range(asked.presses)
                ]
                median, high = statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
                print(
                    f"rtn, {title:10} median {median:4.0f} ms, {median / LIMIT:.2f} of the limit of {LIMIT} ms; 95 % {high:4.0f} ms; {len(taken)} presses of {LAYER}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
