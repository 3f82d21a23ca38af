"""The report as a reader gets it: in a browser, offline, narrow and wide."""

import json
import shutil

import pytest
from conftest import BROWSER
from support.reports import VECTORS, entry, gate, metric, taken
from support.reports import page as page  # a fixture

from kerf.charts import svg
from kerf.evaluate.metrics import METRICS, SYMBOLS
from kerf.workbench.report.junit import junit
from kerf.workbench.report.known_issues import issues
from kerf.workbench.report.page import render_index, render_report

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason=BROWSER)


def test_the_page_says_what_may_be_used_and_why(page):
    text = page.read_text()
    assert len(text) < 1_500_000
    for word in (
        "came with code of its own, which was not run: evil.&lt;b&gt;Evil",
        "calibration.samples",
        "command line",
        "not decided",
        "900",
        "quantize.ipynb",
        "claims no speed",
    ):
        assert word in text
    assert "<img src=x" not in text and "&lt;img src=x" in text
    assert "<script" not in text


def test_a_value_that_is_undefined_and_an_interval_that_is_missing_are_said_with_why(
    page, tmp_path
):
    results = json.loads((page.parent / "results.json").read_text())
    results["release"] = ["undefined", "few"]
    undefined = {
        **metric("cosine_mean", None, None, None),
        "why": "undefined for these scores",
        "needed_n": None,
    }
    few = {
        **metric("cosine_mean", 0.9, None, None),
        "why": "too few independent documents for an interval: 3, at least 12 are needed",
        "needed_n": 1600,
    }
    results["candidates"] += [
        entry("undefined", "FAIL", 0.5, metrics=[undefined], gates=[gate("FAIL", None)], grade="F"),
        entry(
            "few",
            "INCONCLUSIVE",
            0.9,
            metrics=[few],
            gates=[gate("INCONCLUSIVE", None, 1600)],
            grade="C",
        ),
    ]
    text = render_report(results, page.parent, {}).read_text()
    assert (
        "it is undefined for these scores" in text
        and "at least 12 are needed; about 1,600 sentences would decide" in text
        and "exact" not in text
    )
    (page.parent / "results.json").write_text(json.dumps(results))
    assert "undefined" in render_index(tmp_path).read_text()
    for candidate in results["candidates"][-2:]:
        assert any(candidate["metrics"][0]["why"] in line for line in issues(candidate))
    assert "undefined for these scores" in junit(results)


def test_one_broken_run_does_not_hide_the_others(page, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "results.json").write_text('{"schema": 1, "exper')
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "results.json").write_text('{"schema": 2}')
    text = render_index(tmp_path).read_text()
    assert all(name in text for name in ("page", "half", "newer"))


@needs_browser
@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_requested_and_nothing_overflows(page, tmp_path, width, scheme):
    from playwright.sync_api import sync_playwright

    render_index(tmp_path)
    requests, errors = [], []
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: errors.append(message.text))
        for path in (page, tmp_path / "index.html"):
            tab.goto(path.as_uri())
            tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
            assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert not errors and all(url.startswith("file:") for url in requests) and len(requests) == 2
    dark = sum(int(part) for part in background.strip("rgba()").split(",")[:3]) < 3 * 128
    assert dark == (scheme == "dark")


@needs_browser
def test_every_picture_has_words_and_every_table_a_caption(page):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        tab = browser.new_page(java_script_enabled=True)
        tab.goto(page.as_uri())
        pictures = tab.evaluate(
            "[...document.querySelectorAll('svg[role=img]')].map(s => s.getAttribute('aria-label') || s.querySelector('title')?.textContent || '')"
        )
        captions = tab.evaluate(
            "[...document.querySelectorAll('table')].map(t => t.caption?.textContent.trim() || '')"
        )
        heads = tab.evaluate("[...document.querySelectorAll('th')].every(h => h.scope)")
        browser.close()
    assert len(pictures) >= 3 and all(len(words) > 20 for words in pictures)
    assert captions and all(captions) and heads


def test_sparsity_by_layer_is_drawn_where_something_is_gone():
    rows = [
        {"name": f"encoder.layer.{block}.output.dense", "error": 0.1, "sparsity": share}
        for block, share in enumerate((0.3, 0.6))
    ]
    drawn = svg.by_layer(
        {"pruned": rows, "whole": [{**row, "sparsity": 0.0} for row in rows]}, "sparsity"
    )
    assert "Share of zeros of each layer. pruned: largest 0.6; whole: largest 0." in drawn
    assert svg.by_layer({"whole": [{**row, "sparsity": 0.0} for row in rows]}, "sparsity") == ""
    assert (
        svg.by_layer({"old": [{"name": row["name"], "error": 0.1} for row in rows]}, "sparsity")
        == ""
    )


def test_who_is_faster_says_how_much_and_is_not_called_slow(page, tmp_path):
    results = json.loads((page.parent / "results.json").read_text())
    assert "Times faster" not in page.read_text() and "good, bad" in page.read_text()
    results["candidates"][1]["metrics"].append(metric("speedup", 3.125, 2.75, 3.5))
    text = render_report(results, tmp_path / "again", {}).read_text()
    assert "Times faster" in text and "3.12×" in text and "2.75 to 3.50" in text
    assert (
        "good, bad" not in text
        and text.count('class="dagger"') == page.read_text().count('class="dagger"') - 1
    )


def test_what_stayed_in_float_is_told_and_a_partial_candidate_first_of_all(page, tmp_path):
    results = json.loads((page.parent / "results.json").read_text())
    assert "is partial" not in page.read_text() and 'id="coverage"' not in page.read_text()
    experts = {"component": "experts", "parameters": 800, "changed": 0, "bits": None}
    attention = {"component": "attention", "parameters": 210, "changed": 200, "bits": 4.0}
    left = {"name": "layers.*.experts", "parameters": 800, "reason": "no layer that methods know"}
    covered = {"changed": 200, "matrix_parameters": 1000, "share": 0.2}
    covered |= {"components": [attention, experts], "float": [left]}
    results["candidates"][1] |= {"coverage": covered, "partial": True}
    text = render_report(results, tmp_path / "again", {}).read_text()
    first = text.index('class="lead"')
    assert text[first:].startswith('class="lead"><strong>good is partial:</strong> 20 % of')
    section = text[text.index('<section id="coverage"') :]
    for told in ("95.2 %", "4 bits", "200 of 1,000", "layers.*.experts", left["reason"]):
        assert told in section


def test_every_metric_has_its_formula_on_the_page(page):
    assert all(metric.formula for metric in METRICS.values())
    text = page.read_text()
    assert METRICS["cosine_mean"].formula in text and all(symbol in text for symbol in SYMBOLS)


@pytest.mark.parametrize(
    ("found", "said", "never"),
    [
        (
            taken(),
            [
                "take good: 4.5 times as many texts a second as the baseline, 0.25 times its memory, 0.25 times its time to the first answer.",
                "200.0",
                "0.25× (0.15 to 0.35)",
                "&lt;b&gt;no message",
                "on 1 of 5 figures: import.",
            ],
            ["Vectors made small", "<b>no"],
        ),
        (
            taken(recommended=None, memory_limit=300, noisy=[str(n) for n in range(9)]),
            [
                "in 300 MB, no candidate that met its thresholds answers sooner",
                "on 9 of 5 figures; the last row",
            ],
            [],
        ),
        (taken(vectors=VECTORS), ["int8, rescored", "384.0 MB", "0.980 to 1.000"], []),
        (
            {
                "error": {
                    "notebook": "resources.ipynb",
                    "cell": 6,
                    "message": "RuntimeError: <i>gone",
                }
            },
            ["not measured: resources.ipynb, cell 6: RuntimeError: &lt;i&gt;gone"],
            ["What a service would feel"],
        ),
        (None, [], ["As a service"]),
    ],
    ids=["measured", "nothing to take", "vectors", "failed", "not asked for"],
)
def test_what_candidates_take_as_a_service_stands_in_the_report(page, tmp_path, found, said, never):
    results = json.loads((page.parent / "results.json").read_text()) | {"resources": found}
    text = render_report(results, tmp_path / "again", {}).read_text()
    assert all(each in text for each in said) and not any(each in text for each in never)
