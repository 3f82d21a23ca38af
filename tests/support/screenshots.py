"""The pictures of the README, from the newest real run: the report, the leaderboard, and explore in JupyterLab.

    python tests/screenshots.py [--experiment minilm]

Writes reports/example.html and reports/*.png. Needs Chromium and a finished run.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import papermill

from kerf.core.paths import data_folder, root
from support.lab import SECONDS, browser, run_all, served, slider

LAYER = "encoder.layer.3.intermediate.dense"


def pages(opened, reports: Path, experiment: str) -> None:
    """The top of the report and of the leaderboard."""
    shutil.copyfile(reports / experiment / "index.html", reports / "example.html")
    tab = opened.new_page(viewport={"width": 1280, "height": 860}, device_scale_factor=1.5)
    for page, picture in (
        (reports / "example.html", "example"),
        (reports / "index.html", "leaderboard"),
    ):
        tab.goto(page.as_uri())
        if picture == "leaderboard":
            tab.locator("#candidates").scroll_into_view_if_needed()
            tab.get_by_role("button", name="Fidelity").click()
        tab.screenshot(path=reports / f"{picture}.png")
    tab.close()


def explore(opened, reports: Path) -> None:
    """The panel, after a few presses on its sliders."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        papermill.execute_notebook(
            root() / "notebooks" / "explore.ipynb",
            scratch / "explore.ipynb",
            {"layer": LAYER},
            prepare_only=True,
        )
        (scratch / "data").mkdir()
        (scratch / "data" / "sources").symlink_to(data_folder() / "sources")
        with served(
            scratch,
            scratch / "jupyter",
            {"KERF_ROOT": str(root()), "KERF_DATA": str(scratch / "data")},
        ) as address:
            tab = opened.new_page(viewport={"width": 1280, "height": 1000}, device_scale_factor=1.5)
            run_all(tab, address.format("explore.ipynb"))
            tab.get_by_text("the hardest layer").first.wait_for(timeout=SECONDS)
            for name, key in (("bits", "ArrowLeft"), ("clip", "ArrowRight")):
                slider(tab, name).focus()
                tab.keyboard.press(key)
                tab.wait_for_timeout(3000)
            tab.locator(".jp-OutputArea-output .widget-vbox").first.screenshot(
                path=reports / "explore.png"
            )


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="minilm", help="a folder of reports/")
    asked = parser.parse_args()
    with browser() as opened:
        pages(opened, root() / "reports", asked.experiment)
        explore(opened, root() / "reports")


if __name__ == "__main__":
    main()
