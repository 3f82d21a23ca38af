"""What other programs and people take from a run: gates.xml for CI, release.md for a pull request, model cards."""

import os
from pathlib import Path

from kerf.core.errors import of_page
from kerf.workbench.report.junit import junit
from kerf.workbench.report.model_card import card
from kerf.workbench.report.release import release


def write(results: dict, folder: Path) -> None:
    """Write them into a report's folder; a card for each release candidate that was measured."""
    _write(folder / "gates.xml", junit(results))
    _write(folder / "release.md", release(results))
    for candidate in results["candidates"]:
        path = folder / candidate["name"] / "README.md"
        if has_card(results, candidate):
            _write(path, card(results, candidate))
        else:
            path.unlink(missing_ok=True)  # of an earlier run


def has_card(results: dict, candidate: dict) -> bool:
    """Whether a candidate gets a model card."""
    return candidate["name"] in results["release"] and candidate["status"] == "ok"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(of_page(text), encoding="utf-8")
    part.replace(path)
