"""The leaderboard: what is best among all runs, and how it sorts and filters in a browser."""

import os
import subprocess
import sys

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import BROWSER
from support.board import SIZES, run_of, write
from support.lab import CHROMIUM, browser
from support.reports import metric
from support.reports import page as page  # a fixture

from kerf.workbench.report import leaderboard
from kerf.workbench.report.page import render_index

needs_browser = pytest.mark.skipif(not CHROMIUM, reason=BROWSER)
WCAG = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}


@pytest.fixture
def reports(tmp_path):
    write(tmp_path / "grid", run_of(day=21))
    write(tmp_path / "history" / "grid" / "run-21", run_of(day=21))
    write(
        tmp_path / "history" / "grid" / "run-20",
        run_of(day=20, sizes={**SIZES, "middle": (0.5, 10.0), "old": (0.7, 1.0)}),
    )
    write(tmp_path / "newer", {"schema": 99})
    write(
        tmp_path / "half",
        {"schema": 1, "experiment": "half", "manifest": {"started": "2026-11-19T10:00:00+00:00"}},
    )
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "results.json").write_text('{"schema": 1, ')
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "results.json").write_text("[1, 2]")
    return tmp_path


def test_a_broken_run_is_told_and_hides_no_other(reports):
    found = leaderboard.runs(reports)
    assert len(found) == 6  # the newest of an experiment and its copy in the history are one
    told = {run["experiment"]: run["problem"] for run in found if run["problem"]}
    assert (
        "schema 99" in told["newer"]
        and "lacks" in told["half"]
        and "no" in told["torn"]
        and told["list"]
    )
    assert [run["run"] for run in found if not run["problem"]] == ["run-21", "run-20"]
    assert len(leaderboard.candidates(found)) == 4 + 5


def test_of_a_candidate_the_newest_measurement_stands(reports):
    rows = {
        row["name"]: row
        for row in leaderboard.newest(leaderboard.candidates(leaderboard.runs(reports)))
    }
    assert rows["middle"]["run"] == "run-21" and rows["old"]["run"] == "run-20" and len(rows) == 5


def test_best_counts_what_a_candidate_keeps_at_least(reports):
    newest = next(run for run in leaderboard.runs(reports) if run.get("run") == "run-21")
    ((key, rows),) = leaderboard.by_model(leaderboard.candidates([newest])).items()
    assert key == ("minilm", "cosine_mean")
    assert [row["name"] for row in leaderboard.frontier(rows)] == ["small", "middle", "large"]
    assert (
        leaderboard.best_within(rows, 12e6)["name"] == "middle"
        and leaderboard.best_within(rows, 16e6)["name"] == "middle"
    )
    assert leaderboard.best_within(rows, 1e6) is None
    assert leaderboard.smallest(rows, 0.91)["name"] == "middle"  # its interval begins at 0.92
    assert (
        leaderboard.smallest(rows, 0.93)["name"] == "large"
        and leaderboard.smallest(rows, 0.97) is None
    )


def test_less_is_better_where_the_metric_says_so():
    rows = [
        {
            "headline": "kl_mean",
            "bytes": size,
            "name": name,
            "fidelity": {"value": value, "low": value - 0.01, "high": value + 0.01},
        }
        for name, size, value in (("a", 10, 0.1), ("b", 20, 0.05), ("c", 30, 0.2), ("d", None, 0.0))
    ]
    rows.append({"headline": "kl_mean", "bytes": 5, "name": "unmeasured", "fidelity": None})
    assert [row["name"] for row in leaderboard.frontier(rows)] == ["a", "b"]
    assert (
        leaderboard.best_within(rows, 25)["name"] == "b"
        and leaderboard.smallest(rows, 0.11)["name"] == "a"
    )
    assert leaderboard.smallest(rows, 0.1)["name"] == "b"


def test_trends_follow_the_worst_for_release(reports):
    (line,) = leaderboard.trends(leaderboard.runs(reports)).values()
    assert [(run["run"], run["worst"]["name"]) for run in line] == [
        ("run-20", "middle"),
        ("run-21", "middle"),
    ]
    assert [run["worst"]["fidelity"]["value"] for run in line] == [0.5, 0.95]
    pairs = leaderboard.side_by_side(
        *[run for run in leaderboard.runs(reports) if not run["problem"]]
    )
    assert {pair["name"] for pair in pairs if pair["first"] is None} == {"old"}


NAMES = ["<b>bold</b>", "a/b", "x" * 300, "naïve-🦀"]


def test_names_are_shown_escaped_and_whole(tmp_path):
    sizes = {name: (0.9, 10.0 + place) for place, name in enumerate(NAMES)}
    write(tmp_path / "odd", run_of("odd <i>", sizes=sizes, release=NAMES))
    text = render_index(tmp_path).read_text()
    assert (
        "<b>bold" not in text
        and "<i>" not in text
        and "&lt;b&gt;bold&lt;/b&gt;" in text
        and "x" * 300 in text
        and "naïve-🦀" in text
    )


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 768, 1440])
def test_pages_are_accessible(page, reports, width, scheme):
    index = render_index(reports)
    with browser() as opened:
        tab = opened.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        for path in (index, page):
            tab.goto(path.as_uri())
            tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
            found = Axe().run(tab, options=WCAG)
            assert not found.violations_count, found.generate_report()
            assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path


@needs_browser
def test_tables_sort_filter_and_answer(reports):
    requests, errors = [], []
    with browser() as opened:
        tab = opened.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: errors.append(message.text))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(render_index(reports).as_uri())
        board_ = tab.locator("#candidates table")
        names = lambda: board_.locator("tbody tr:not([hidden]) th").all_inner_texts()  # noqa: E731
        head = board_.get_by_role("button", name="MB", exact=True)
        head.focus()
        tab.keyboard.press("Enter")
        assert names() == ["old", "small", "middle", "worse", "large"]
        assert board_.locator("th[aria-sort=ascending]").count() == 1
        tab.keyboard.press("Enter")
        assert names() == ["large", "worse", "middle", "small", "old"]
        tab.locator("#candidates").get_by_label("Show rows with").fill("mid GRID")
        assert names() == ["middle"] and tab.locator("#candidates output").inner_text() == "1 of 5"
        tab.get_by_label("Best within MB").fill("12")
        assert tab.locator("#best output").first.inner_text() == "middle: 10.0 MB, 0.920"
        tab.get_by_label("Smallest with Mean cosine").fill("0.95")
        assert tab.locator("#best output").last.inner_text() == "large: 20.0 MB, 0.960"
    assert not errors and len(requests) == 1


@needs_browser
def test_the_list_can_be_read_without_a_script(reports):
    with browser() as opened:
        context = opened.new_context(java_script_enabled=False)
        tab = context.new_page()
        tab.goto(render_index(reports).as_uri())
        assert (
            tab.locator("#candidates tbody tr").count() == 5
            and tab.get_by_text("newer Kerf").is_visible()
        )


@needs_browser
def test_a_report_prints_whole(page, tmp_path):
    with browser() as opened:
        tab = opened.new_page(viewport={"width": 700, "height": 1000})  # about A4
        tab.emulate_media(media="print")
        tab.goto(page.as_uri())
        cut = tab.evaluate("""() => [...document.querySelectorAll('figure svg')].filter(chart => {
            const box = chart.getBoundingClientRect();
            return box.right > innerWidth + 1 || box.height > 950 || getComputedStyle(chart).breakInside !== 'avoid'; }).length""")
        assert tab.locator("figure svg").count() >= 3 and cut == 0
    (tmp_path / "reports").mkdir()
    os.rename(page.parent, tmp_path / "reports" / "printed")
    command = [sys.executable, "-m", "kerf", "report", "printed", "--pdf", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "reports" / "printed" / "report.pdf").read_bytes()
    assert (
        made.startswith(b"%PDF")
        and made.rstrip().endswith(b"%%EOF")
        and made.count(b"/Type /Page") >= 3
    )


def test_a_report_that_is_not_there_is_refused(tmp_path):
    command = [sys.executable, "-m", "kerf", "report", "nothing", "--pdf", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2
        and done.stderr.startswith("kerf: EXPERIMENT = 'nothing'")
        and len(done.stderr.splitlines()) == 1
    )


def test_printing_without_a_browser_names_what_would_do(page, tmp_path):
    (tmp_path / "reports").mkdir()
    os.rename(page.parent, tmp_path / "reports" / "printed")
    command = [sys.executable, "-m", "kerf", "report", "printed", "--pdf", "--out", str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert done.returncode == 2 and "apt-get install chromium" in done.stderr


def test_what_was_measured_of_speed_is_on_the_board(tmp_path):
    content = run_of()
    content["candidates"][1]["metrics"].append(metric("speedup", 2.5, 2.0, 3.0))
    write(tmp_path / "fast", content)
    assert ">2.50</td>" in render_index(tmp_path).read_text()
