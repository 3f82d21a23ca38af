"""Marks of tests, and at the end how many were left out for want of a browser."""

import pytest

BROWSER = "needs a browser: apt-get install chromium"
# Files whose tests are functions of plain numbers and tiny tensors: all of them together take less than two minutes.
UNIT = {
    "test_bad_input",
    "test_environment",
    "test_exports",
    "test_grid",
    "test_judge",
    "test_layers",
    "test_likelihood",
    "test_packing",
    "test_offload",
    "test_statistics",
    "test_steps",
    "test_store",
    "test_texts",
}


def pytest_configure(config):
    """Say what the marks mean."""
    for line in (
        "unit: quick tests without whole models, under two minutes together",
        "model: tests on small models, whole runs and processes",
        "notebook: cells of a notebook under nbval",
        "browser: tests that look at pages in Chromium",
    ):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(items):
    """Give every test one mark."""
    for item in items:
        reasons = [mark.kwargs.get("reason") for mark in item.iter_markers("skipif")]
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.notebook)
        elif BROWSER in reasons:
            item.add_marker(pytest.mark.browser)
        else:
            item.add_marker(pytest.mark.unit if item.path.stem in UNIT else pytest.mark.model)


def pytest_terminal_summary(terminalreporter):
    """Count the skipped tests of pages."""
    skipped = [
        report
        for report in terminalreporter.getreports("skipped")
        if BROWSER in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests of pages were skipped; to run them: apt-get install chromium"
        )
