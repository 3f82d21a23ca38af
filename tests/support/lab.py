"""JupyterLab in a browser, for tests and benchmarks of what one does there by hand."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium")
TOKEN = "only-for-this-test"
SECONDS = 120_000  # playwright counts in milliseconds


@contextmanager
def browser() -> Iterator:
    """Debian's Chromium, headless."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def served(notebooks: Path, scratch: Path, environment: dict[str, str]) -> Iterator[str]:
    """Address of a JupyterLab on a folder, with settings of its own below `scratch`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    own = {
        f"JUPYTER{name}_DIR": str(scratch / name.lower().strip("_"))
        for name in ("_CONFIG", "LAB_SETTINGS", "LAB_WORKSPACES", "_DATA", "_RUNTIME")
    }
    quiet = (
        scratch
        / "lab_settings"
        / "@jupyterlab"
        / "apputils-extension"
        / "notification.jupyterlab-settings"
    )
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false"}')  # or it asks whether it may
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--notebook-dir={notebooks}",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    server = subprocess.Popen(
        command,
        env={**os.environ, **own, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _answers(f"http://127.0.0.1:{port}/api", server)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={TOKEN}"
    finally:
        server.terminate()
        server.wait(30)


def _answers(address: str, server) -> None:
    for _ in range(240):
        assert server.poll() is None, "JupyterLab ended"
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise TimeoutError(address)


def run_all(page: Page, address: str) -> None:
    """Open a notebook, wait for its kernel, and choose Run > Run All Cells."""
    page.goto(address, timeout=SECONDS)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=SECONDS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def complaints(page: Page) -> list[str]:
    """What JupyterLab or a cell warns of: dialogs, notifications, and standard error."""
    return page.locator(
        ".jp-Dialog, .Toastify__toast, [data-mime-type='application/vnd.jupyter.stderr']"
    ).all_inner_texts()


def slider(page: Page, name: str):
    """The handle of a slider of ipywidgets, by what stands beside it."""
    return page.locator(".widget-hslider", has=page.get_by_text(name, exact=True)).locator(
        ".noUi-handle"
    )
