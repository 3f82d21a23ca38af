"""Puts the notebooks, experiments and criteria of the repository into the wheel, as kerf/share."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = {"notebooks": ("*.ipynb", "experiments/*.yaml"), "data": ("criteria/*.json",)}


class WithNotebooks(build_py):
    """The usual build, and the files that an installed Kerf cannot find in a clone."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if self.editable_mode:
            return
        for folder, patterns in SHARED.items():
            for pattern in patterns:
                for path in sorted((REPOSITORY / folder).glob(pattern)):
                    target = Path(self.build_lib, "kerf", "share", path.relative_to(REPOSITORY))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)


setup(cmdclass={"build_py": WithNotebooks})
