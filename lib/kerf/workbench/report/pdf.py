"""A report's page as PDF, printed by a Chromium that is installed; Kerf brings none."""

import os
import shutil
import subprocess
from pathlib import Path

from kerf.core.errors import refuse
from kerf.core.scratch import scratch

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def printed(page: Path, target: Path) -> Path:
    """`page` (HTML) printed to `target`. Raises InputError where no browser is installed, RuntimeError where it fails."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise refuse(
            "--pdf",
            target.name,
            f"one of {', '.join(BROWSERS)} on the path, as `apt-get install chromium` gives",
        )
    with scratch() as aside:
        made = Path(aside, "page.pdf")
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--no-pdf-header-footer",
            f"--user-data-dir={aside}/profile",
            f"--print-to-pdf={made}",
        ]
        command += (
            ["--no-sandbox", "--disable-dev-shm-usage"] if os.geteuid() == 0 else []
        )  # as in a container
        done = subprocess.run(
            [*command, page.resolve().as_uri()],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if not made.is_file():
            raise RuntimeError(
                f"{browser} printed nothing: {done.stderr.strip().splitlines()[-1:] or done.returncode}"
            )
        return Path(shutil.move(made, target))
