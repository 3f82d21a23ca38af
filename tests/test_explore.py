"""The panel as a researcher uses it: by hand in JupyterLab, and what it saves runs headless."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import papermill
import pytest
import torch
import yaml
from conftest import BROWSER
from support.lab import CHROMIUM, SECONDS, browser, complaints, run_all, served, slider
from support.small import write_causal, write_model, write_reranker

from kerf import pipeline
from kerf.calibration import hessian
from kerf.config import Calibration
from kerf.core.errors import InputError
from kerf.core.paths import data_folder, root
from kerf.models import registry
from kerf.workbench.interactive.background import BackgroundBuild, latest_request
from kerf.workbench.interactive.layer_explorer import LayerConfig, LayerSession
from kerf.workbench.interactive.panel import Panel
from kerf.workbench.interactive.save_candidate import TITLE, add_candidate

SPEC = Calibration(samples=24)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def session(tiny):
    return LayerSession(tiny, SPEC)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A clone's root of its own, so that nothing that is saved stays."""
    shutil.copytree(root() / "notebooks", tmp_path / "notebooks")
    shutil.copytree(root() / "data" / "criteria", tmp_path / "data" / "criteria")
    data = tmp_path / "data"
    (data / "sources").symlink_to(data_folder() / "sources")
    monkeypatch.setenv("KERF_ROOT", str(tmp_path))
    monkeypatch.setenv("KERF_DATA", str(data))
    return tmp_path


NAME = "encoder.layer.1.output.dense"
NAME_OF_A_RERANKER = f"bert.{NAME}"


@pytest.mark.parametrize(
    "choice",
    [
        LayerConfig(bits=3, group_size=32, clip="mse"),
        LayerConfig("gptq", 4, None, "hessian"),
        LayerConfig(bits=4, group_size=32, sparsity=0.5),
    ],
)
def test_a_cut_is_what_the_first_layer_of_a_candidate_becomes(tiny, session, choice):
    """Of the first layer, which no earlier cut disturbs, and with the word embeddings in float."""
    first = next(iter(session.layers))
    chain = choice.steps()
    chain[-1]["quantize"] |= {"embeddings": 32, "scale_dtype": "float16"}
    made = (
        registry.network(registry.load(pipeline.build(tiny, chain, SPEC)))
        .get_submodule(first)
        .weight.detach()
    )
    cut = session.cut(first, choice)
    if choice.method == "rtn":
        assert torch.equal(made, cut.after())
    else:  # GPTQ's moments are summed in another order here
        second = session.second[first]
        assert hessian.output_error(cut.before, made, second) == pytest.approx(cut.error, rel=0.15)
    assert (cut.after() == 0).float().mean() >= choice.sparsity


def test_error_by_group_adds_up(session):
    cut = session.cut(NAME, LayerConfig(bits=2, group_size=32))
    error = (cut.after() - cut.before).square()
    assert cut.by_group().shape == (64, 4)
    assert float(cut.by_group()[3, 2]) == pytest.approx(
        float(error[3, 64:96].mean() / cut.before.square().mean()), rel=1e-5
    )


def test_an_answer_leaves_the_model_as_it_was(session):
    texts, cut = session.kind.EXAMPLES, session.cut(NAME, LayerConfig(bits=2, group_size=None))
    ((what, before, after),) = session.output_diff(texts, cut)
    assert what == "similarity" and before != after
    assert session.output_diff(texts) == [(what, before, before)]


def test_a_prompt_is_answered_with_probabilities(tmp_path):
    asked = LayerSession(
        str(write_causal(tmp_path / "causal")), Calibration(samples=4, max_length=64)
    )
    cut = asked.cut(next(iter(asked.layers)), LayerConfig(bits=2, group_size=None))
    rows = asked.output_diff(asked.kind.EXAMPLES, cut)
    assert len(rows) >= 5 and all(0 <= p <= 1 for _, *both in rows for p in both)
    assert [before for _, before, _ in rows[:5]] == sorted(
        (before for _, before, _ in rows[:5]), reverse=True
    )
    assert any(before != after for _, before, after in rows)
    with pytest.raises(InputError, match="prompt"):
        asked.output_diff(("",))


def test_a_pair_is_scored_by_a_reranker(tmp_path):
    asked = LayerSession(str(write_reranker(tmp_path / "reranker")), SPEC)
    ((what, before, after),) = asked.output_diff(
        asked.kind.EXAMPLES, asked.cut(NAME_OF_A_RERANKER, LayerConfig(bits=2, group_size=None))
    )
    assert what == "score" and before != after


def test_the_newest_request_overtakes_the_others():
    done = []
    submit = latest_request(lambda request: (done.append(request), time.sleep(0.3)))
    for request in range(20):
        submit(request)
        time.sleep(0.005)
    time.sleep(1)
    assert done[-1] == 19 and len(done) <= 4


def test_a_candidate_being_made_can_be_cancelled(tiny):
    building = BackgroundBuild(tiny, LayerConfig().steps(), SPEC)
    building.cancel()
    assert building.over(within=30)
    with pytest.raises(RuntimeError, match="cancelled"):
        building.result()


def test_a_candidate_is_made_and_a_wrong_one_says_why(tiny):
    building = BackgroundBuild(tiny, LayerConfig(group_size=32).steps(), SPEC)
    assert building.over(within=300) and registry.load(building.result())
    wrong = BackgroundBuild(tiny, LayerConfig(group_size=48).steps(), SPEC)
    assert wrong.over(within=300)
    with pytest.raises(RuntimeError, match="group_size = 48"):
        wrong.result()


def test_the_choice_comes_back(house, tiny):
    panel = Panel(tiny, calibration=SPEC)
    panel.group_size.value, panel.bits.value, panel.layer.value = 32, 3, NAME
    for _ in range(100):
        time.sleep(0.1)
        if NAME in panel.numbers.value and "3" in json.dumps(
            json.loads((house / "data" / "explore.json").read_text())[tiny]["bits"]
        ):
            break
    again = Panel(tiny, calibration=SPEC)
    assert (again.layer.value, again.bits.value, again.group_size.value) == (NAME, 3, 32)
    (house / "data" / "explore.json").write_text(
        json.dumps({tiny: {"bits": "many", "layer": "gone", "clip": 3}})
    )
    assert Panel(tiny, calibration=SPEC).bits.value == 4
    (house / "data" / "explore.json").write_text("no JSON")
    assert Panel(tiny, calibration=SPEC).bits.value == 4


def test_a_layer_that_is_asked_for_goes_before_the_one_of_the_last_time(house, tiny):
    (house / "data" / "explore.json").write_text(json.dumps({tiny: {"bits": 3, "layer": NAME}}))
    first = "encoder.layer.0.output.dense"
    panel = Panel(tiny, first, SPEC)
    assert (panel.layer.value, panel.bits.value) == (first, 3) and first in panel.numbers.value


def test_a_whole_candidate_answers_for_its_own_model_and_choice_alone(house, tiny):
    panel = Panel(tiny, calibration=SPEC)
    cut = panel.session.cut(NAME, panel.choice())
    for session, choice, shown in (
        (panel.session, panel.choice(), True),
        (panel.session, LayerConfig(bits=7), False),
        (object(), panel.choice(), False),
    ):
        panel.built = session, choice, panel.session.opened
        assert ("all layers cut" in panel._outputs_html(panel.request()[2], cut)) == shown


def test_a_model_that_does_not_open_leaves_the_one_that_is_there(house, tiny):
    panel = Panel(tiny, calibration=SPEC)
    before, panel.model.options = panel.session, [tiny, "./nowhere"]
    panel.model.value = "./nowhere"
    for _ in range(100):
        time.sleep(0.1)
        if panel.model.value == tiny:
            break
    assert panel.model.value == tiny and panel.session is before
    for _ in range(100):
        if "./nowhere" in panel.status.value and "Opening" not in panel.status.value:
            break
        time.sleep(0.1)
    assert "nowhere" in panel.status.value and "Opening" not in panel.status.value


def test_an_unknown_layer_is_refused(house, tiny):
    with pytest.raises(InputError, match="layer = 'encoder.layer.9"):
        Panel(tiny, "encoder.layer.9.output.dense", SPEC)


def test_saved_candidates_gather_in_one_experiment(house, tiny):
    first = add_candidate("mine", tiny, SPEC, "a", LayerConfig(group_size=32).steps())
    add_candidate("mine", tiny, SPEC, "b", LayerConfig("gptq", 2, None).steps())
    content = yaml.safe_load(first.read_text())
    assert (
        [*content["candidates"]] == ["a", "b"]
        and content["criteria"] == ["encoder"]
        and content["model"] == tiny
    )
    before = first.read_text()
    for arguments, match in [
        (("mine", tiny, SPEC, "a", LayerConfig().steps()), "candidate = 'a'"),
        (("mine", "minilm", SPEC, "c", LayerConfig().steps()), "model = 'minilm'"),
        (("mine", tiny, Calibration(samples=25), "c", LayerConfig().steps()), "calibration"),
        (("mine", tiny, SPEC, "No/Name", LayerConfig().steps()), "No/Name"),
        (("mine", tiny, SPEC, "c", [{"quantize": {"bits": 99}}]), "bits = 99"),
        (("../mine", tiny, SPEC, "c", LayerConfig().steps()), "experiment"),
        (("minilm", "minilm", SPEC, "c", LayerConfig().steps()), "written by hand"),
    ]:
        with pytest.raises(InputError, match=re.escape(match)):
            add_candidate(*arguments)
    assert first.read_text() == before and before.startswith(TITLE)
    assert [
        path.name for path in first.parent.iterdir() if path.name.startswith(("mine", "tmp"))
    ] == ["mine.yaml"]


@pytest.mark.skipif(not CHROMIUM, reason=BROWSER)
def test_every_notebook_opens_without_a_warning(tmp_path):
    names = sorted(path.name for path in (root() / "notebooks").glob("*.ipynb"))
    with served(root() / "notebooks", tmp_path, {}) as address, browser() as opened:
        page = opened.new_page(viewport={"width": 1440, "height": 900})
        for name in names:
            page.goto(address.format(name), timeout=SECONDS)
            page.locator(".jp-Notebook .jp-Cell:visible").first.wait_for(timeout=SECONDS)
            page.get_by_text("Python 3 (ipykernel) |").wait_for(timeout=SECONDS)
            assert not complaints(page), name
    assert len(names) > 10


@pytest.mark.skipif(not CHROMIUM, reason=BROWSER)
def test_by_hand_in_jupyterlab(house, tiny):
    """Open, run all, move sliders by keyboard, save; after a restart "run all" brings the choice back; the candidate runs."""
    parameters = {"model": tiny, "samples": 24, "group_size": 32}
    papermill.execute_notebook(
        house / "notebooks" / "explore.ipynb",
        house / "notebooks" / "hand.ipynb",
        parameters,
        prepare_only=True,
    )
    with (
        served(
            house / "notebooks",
            house / "jupyter",
            {"KERF_ROOT": str(house), "KERF_DATA": str(house / "data")},
        ) as address,
        browser() as opened,
    ):
        page = opened.new_page(viewport={"width": 1440, "height": 1100})
        run_all(page, address.format("hand.ipynb"))
        lost = page.get_by_text("of its output lost").first
        lost.wait_for(timeout=SECONDS)
        chart, slid = page.locator(".jp-OutputArea-output img").first, slider(page, "group size")
        before = lost.inner_text(), chart.get_attribute("src")
        slid.focus()
        slid.press("ArrowLeft")  # 64, which the layers' columns allow, to 32
        slider(page, "bits").focus()
        page.keyboard.press("ArrowLeft")
        page.wait_for_function(
            "([before, after]) => document.querySelector('.jp-OutputArea-output img').src !== after",
            arg=before,
            timeout=SECONDS,
        )
        page.wait_for_function(
            "before => ![...document.querySelectorAll('[aria-live]')].some(e => e.innerText === before)",
            arg=before[0],
            timeout=SECONDS,
        )
        page.get_by_role("button", name="Save as a candidate").click()
        page.get_by_text("kerf run explored").wait_for(timeout=SECONDS)
        assert not complaints(page)
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_role("menuitem", name="Restart Kernel and Run All Cells").click()
        page.locator(".jp-Dialog").get_by_text("Restart", exact=True).click()
        page.wait_for_function(
            "() => ![...document.querySelectorAll('.noUi-handle')].length", timeout=SECONDS
        )
        lost.wait_for(timeout=SECONDS)
        assert slider(page, "bits").get_attribute("aria-valuetext") in ("3", "3.0")
    saved = yaml.safe_load((house / "notebooks" / "experiments" / "explored.yaml").read_text())
    assert saved["candidates"] == {
        "int3-rtn-g32": [
            {"quantize": {"method": "rtn", "bits": 3, "clip": "none", "group_size": 32}}
        ]
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kerf",
            "run",
            "explored",
            "-p",
            "evaluation.sentences=40",
            "-p",
            "evaluation.passages=40",
        ],
        env={**os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    results = json.loads(Path(house, "reports", "explored", "results.json").read_text())
    assert [c["name"] for c in results["candidates"]] == ["baseline", "int3-rtn-g32"]
