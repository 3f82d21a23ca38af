"""Says at the end how many tests were left out for want of a browser."""

BROWSER = "needs a browser: apt-get install chromium"


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
