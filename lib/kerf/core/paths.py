"""Where things lie: the clone's root, its data folder, and where a run's output goes."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def root() -> Path:
    """The clone's root: KERF_ROOT, else the folder above `lib/`, else the current folder."""
    if "KERF_ROOT" in os.environ:
        return Path(os.environ["KERF_ROOT"]).resolve()
    above = Path(__file__).resolve().parents[3]
    return above if (above / "notebooks").is_dir() else Path.cwd()


def shipped() -> Path:
    """Where `notebooks` and `data/criteria` lie: in the clone, or in the installed package."""
    above = root()
    return above if (above / "notebooks" / "compare.ipynb").is_file() else PACKAGE / "share"


def data_folder() -> Path:
    """Sources, hub files and the content-addressed cache: KERF_DATA, else `data/` of the clone."""
    return Path(os.environ.get("KERF_DATA", root() / "data")).resolve()
