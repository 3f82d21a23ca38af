"""Print a report's page as PDF with an installed Chromium; Kerf does not ship one."""

import os
import shutil
import subprocess
from pathlib import Path

from kerf.core.errors import refuse
from kerf.core.scratch import scratch

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def printed(page: Path, target: Path) -> Path:
    """Print `page` (HTML) to `target`. Raises InputError if no browser is installed, RuntimeError if it fails."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        accepted = f"one of {', '.join(BROWSERS)} on the path, as `apt-get install chromium` gives"
        raise refuse("--pdf", target.name, accepted)
    with scratch() as folder:
        pdf = folder / "page.pdf"
        options = ["--headless", "--disable-gpu", "--no-pdf-header-footer"]
        options += [f"--user-data-dir={folder}/profile", f"--print-to-pdf={pdf}"]
        if os.geteuid() == 0:  # as in a container
            options += ["--no-sandbox", "--disable-dev-shm-usage"]
        command = [browser, *options, page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if not pdf.is_file():
            why = done.stderr.strip().splitlines()[-1:] or done.returncode
            raise RuntimeError(f"{browser} printed nothing: {why}")
        return Path(shutil.move(pdf, target))
