"""Documents: links and anchors lead somewhere, commands and example experiments are accepted, generated pages are current."""

import importlib.util
import json
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from kerf.config import STEPS, Calibration, Evaluation, Resources, check_chain, parse
from kerf.workbench import cli

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + DOCS
SECTIONS = {"calibration": Calibration, "evaluation": Evaluation, "resources": Resources}


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokens(page):
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def targets(page):
    """Addresses of the links and pictures of a page."""
    inline = [child for token in tokens(page) if token.children for child in token.children]
    return [
        child.attrs.get("href") or child.attrs.get("src")
        for child in inline
        if child.type in ("link_open", "image")
    ]


def anchors(page):
    """Anchors of the headings of a page, as GitHub and MyST make them."""
    found = tokens(page)
    titles = [
        found[place + 1].content
        for place, token in enumerate(found)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken(page):
    """Relative links of a page whose file or anchor does not exist."""
    bad = []
    for target in targets(page):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or anchor and anchor not in anchors(path):
            bad.append(target)
    return bad


def fences(page, language):
    return [
        token.content
        for token in tokens(page)
        if token.type == "fence" and token.info.split()[:1] == ([language] if language else [])
    ]


def commands(page):
    """Every `kerf` command line of a page, out of fences and code spans; without comments and alternatives."""
    spans = [
        child.content
        for token in tokens(page)
        if token.children
        for child in token.children
        if child.type == "code_inline"
    ]
    lines = [
        line.partition("#")[0].strip() for block in fences(page, "") for line in block.splitlines()
    ] + spans
    return [
        line.removeprefix(".venv/bin/")
        for line in lines
        if re.match(r"(\.venv/bin/)?kerf [a-z]", line)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path):
    page = tmp_path / "page.md"
    links = "[a](#one-title) [b](#two) [c](page.md#one-title) [d](none.md) [e](https://example.org)"
    page.write_text(f"# One title\n\n{links}\n\n| [f](no.md) |\n|---|\n")
    assert broken(page) == ["#two", "none.md", "no.md"]


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_guide_is_in_the_table_of_contents_and_in_the_readme():
    index = (ROOT / "docs" / "index.md").read_text()
    linked = {
        (ROOT / target).resolve()
        for target in targets(ROOT / "README.md")
        if not target.startswith("http")
    }
    for page in (ROOT / "docs" / "guide").glob("*.md"):
        assert f"guide/{page.stem}" in index and page in linked, page


def test_every_command_line_is_one_that_the_parser_accepts(capsys):
    found = [(page.name, line) for page in PAGES for line in commands(page)]
    assert len({line.split()[1] for _, line in found}) >= 6
    for page, line in found:
        name, *rest = shlex.split(line)[1:]
        arguments = (
            [name]
            if any(re.search(r"\||^[A-Z]+$|\.\.\.", word) for word in rest) or not rest
            else [name, *rest]
        )
        with pytest.raises(SystemExit) as help_text:
            cli.main([*arguments, "--help"])
        assert help_text.value.code == 0, f"{page}: {line}: {capsys.readouterr().err}"
        known = capsys.readouterr().out
        for option in (word for word in rest if re.match(r"--?[a-z]", word)):
            assert re.search(rf"(?<![\w-]){option}\b", known), (
                f"{page}: {line}: {option} is not an option of {name}"
            )


def test_every_example_experiment_is_accepted():
    blocks = [
        (page.name, yaml.safe_load(block)) for page in PAGES for block in fences(page, "yaml")
    ]
    assert sum("candidates" in content for _, content in blocks) >= 5
    for page, content in blocks:
        for section, values in content.items():
            if section in SECTIONS:
                parse(SECTIONS[section], values, f"{page}: {section}")
        for name, chain in content.get("candidates", {}).items():
            steps = [(kind, values) for step in chain for kind, values in step.items()]
            check_chain(
                [
                    {kind: parse(STEPS[kind], values, f"{page}: {name}").model_dump()}
                    for kind, values in steps
                ],
                name,
            )


@pytest.mark.parametrize("name", ["metrics.md", "parameters.md", "images/architecture.svg"])
def test_reference_pages_are_what_the_library_says(name):
    assert (ROOT / "docs" / name).read_text() == script("reference").PAGES[name](), (
        "run `make docs`"
    )


def test_the_page_of_results_is_made_of_the_runs_that_are_kept():
    assert (ROOT / "docs" / "results.md").read_text() == script("tables").page(), (
        "run `python docs/tables.py`"
    )
    assert (ROOT / "README.md").read_text() == script("tables").readme()


def results():
    row = {
        "name": "cosine_mean",
        "value": 0.99281,
        "low": 0.99262,
        "high": 0.993,
        "baseline": 1.0,
        "n": 400,
    }
    later = {**row, "value": 0.999}  # of another text; the worst stands first
    made = {
        "name": "int4",
        "status": "ok",
        "steps": [],
        "bytes_on_disk": 17_260_000,
        "compression_ratio": 5.26,
        "verdict": "PASS",
        "grade": "A",
        "metrics": [row, later],
        "layers": [{"name": "x"}],
    }
    return {
        "schema": 1,
        "experiment": "grid",
        "verdict": "PASS",
        "release": ["int4"],
        "model": {"id": "minilm", "kind": "encoder", "parameters": 22_713_216, "bytes": 90_868_376},
        "settings": {"calibration.samples": {"value": 256, "from": "default"}},
        "candidates": [{"name": "baseline", "status": "ok", "steps": [], "metrics": []}, made],
        "manifest": {
            "run": "20261122T000000Z-abc",
            "kerf": "0.1.0",
            "python": "3.11",
            "packages": {"torch": "2"},
            "started": "2026-11-22T10:00:00",
            "seconds": 463.2,
            "seed": 0,
            "cpu": {"model": "A processor", "flags": ["avx2"], "threads": 2},
        },
    }


def test_a_run_is_slimmed_and_becomes_a_table_that_names_it(tmp_path):
    tables = script("tables")
    tables.RUNS = tmp_path
    (tmp_path / "results.json").write_text(json.dumps(results()))
    kept = json.loads(tables.add(tmp_path / "results.json").read_text())
    assert "packages" not in kept["manifest"] and "layers" not in kept["candidates"][1]
    (tmp_path / "results.json").unlink()
    page = tables.page()
    assert (
        "20261122T000000Z-abc" in page
        and "2 threads of A processor" in page
        and "2026-11-22" in page
    )
    assert "| int4 | PASS, A | 17.26 | 5.26 | 0.9928 (0.9926 to 0.9930) |" in page


def test_a_candidate_that_was_not_measured_has_dashes(tmp_path):
    tables = script("tables")
    run = tables.slim(results())
    run["candidates"].append(
        {
            "name": "broken",
            "status": "failed",
            "verdict": "NOT MEASURED",
            "grade": None,
            "metrics": [],
        }
    )
    assert "| broken | NOT MEASURED | – | – | – |" in tables.section(run)


def test_a_file_that_is_no_result_is_not_kept(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="schema 1"):
        script("tables").add(tmp_path / "results.json")


def test_the_newest_executed_copy_of_a_notebook_is_found_by_its_heading(tmp_path):
    pages = script("notebook_pages")
    pages.ROOT = tmp_path

    def notebook(path, heading, age):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    "nbformat": 4,
                    "nbformat_minor": 5,
                    "metadata": {},
                    "cells": [
                        {
                            "id": "a",
                            "cell_type": "markdown",
                            "metadata": {},
                            "source": f"# {heading}\ntext",
                        }
                    ],
                }
            )
        )
        os.utime(path, (age, age))

    notebook(tmp_path / "notebooks" / "quantize.ipynb", "Quantize", 1)
    assert pages.finished("quantize") is None
    notebook(tmp_path / "reports" / "minilm" / "int8" / "quantize.ipynb", "Quantize", 2)
    notebook(tmp_path / "reports" / "minilm" / "int4" / "quantize.ipynb", "Quantize", 3)
    notebook(tmp_path / "reports" / "minilm-int8" / "int8" / "quantize.ipynb", "Kernels", 4)
    notebook(tmp_path / "reports" / "minilm" / "int3" / "quantize.partial.ipynb", "Quantize", 5)
    assert pages.finished("quantize") == tmp_path / "reports" / "minilm" / "int4" / "quantize.ipynb"
