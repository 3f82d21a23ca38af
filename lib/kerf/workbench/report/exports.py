"""What other programs and people take from a run: gates.xml for CI, release.md for a pull request, model cards."""

from pathlib import Path

from kerf.core.atomic import write_page
from kerf.workbench.report.junit import junit
from kerf.workbench.report.model_card import card
from kerf.workbench.report.release import release


def write(results: dict, folder: Path) -> None:
    """Write them into a report's folder; a card for each release candidate that was measured."""
    write_page(folder / "gates.xml", junit(results))
    write_page(folder / "release.md", release(results))
    for candidate in results["candidates"]:
        path = folder / candidate["name"] / "README.md"
        if has_card(results, candidate):
            write_page(path, card(results, candidate))
        else:
            path.unlink(missing_ok=True)  # of an earlier run


def has_card(results: dict, candidate: dict) -> bool:
    """Whether a candidate gets a model card."""
    return candidate["name"] in results["release"] and candidate["status"] == "ok"
