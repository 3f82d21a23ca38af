"""Where things lie: the clone's root, what is shipped with Kerf, and the data folder."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def root() -> Path:
    """The clone's root: KERF_ROOT, else the folder above `lib/`, else the current folder."""
    if "KERF_ROOT" in os.environ:
        return Path(os.environ["KERF_ROOT"]).resolve()
    clone = PACKAGE.parents[1]
    return clone if (clone / "notebooks").is_dir() else Path.cwd()


def shipped() -> Path:
    """The folder of `notebooks` and `data/criteria`: the clone, or `share` of the installed package."""
    clone = root()
    return clone if (clone / "notebooks" / "compare.ipynb").is_file() else PACKAGE / "share"


def data_folder() -> Path:
    """The folder of sources, hub files and the cache: KERF_DATA, else `data/` of the clone."""
    return Path(os.environ.get("KERF_DATA", root() / "data")).resolve()
