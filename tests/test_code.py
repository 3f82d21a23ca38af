"""What a change of Kerf's own code throws away of finished work: what depends on it, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.small import write_model

import kerf
from kerf.core import code
from kerf.core.paths import data_folder, root

SCRIPT = """
import json, sys
from pathlib import Path
from kerf import pipeline
from kerf.config import Calibration
from kerf.core import code
from kerf.workbench.run.notebook_stage import _code
spec, found = Calibration(samples=16, max_length=64), {}
for method in ("rtn", "gptq"):
    steps = [{"quantize": {"method": method, "bits": 4}}]
    found[method] = str(pipeline.build(sys.argv[1], steps, spec))
    for name, parameters in (("quantize", {"step": steps[0]["quantize"]}), ("compare", {"steps": steps})):
        found[f"{name} {method}"] = code.digest(tuple(_code(name, {"model": sys.argv[1], **parameters})))
for name, parameters in (("calibrate", {}), ("kernels", {"step": {"method": "dynamic"}})):
    found[name] = code.digest(tuple(_code(name, {"model": sys.argv[1], **parameters})))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A function that builds candidates with a copy of the library, and the copy's folder."""
    place = tmp_path_factory.mktemp("copy")
    skip = shutil.ignore_patterns("__pycache__")
    copy = shutil.copytree(Path(kerf.__file__).parent, place / "lib" / "kerf", ignore=skip)
    model = str(write_model(place / "m"))
    environment = {**os.environ, "PYTHONPATH": str(place / "lib"), "KERF_ROOT": str(root())}

    def build(**more: str) -> dict:
        command = [sys.executable, "-c", SCRIPT, model]
        done = subprocess.run(
            command, env={**environment, **more}, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    return build, copy, build()


def changed(built, file: str, text: str) -> set[str]:
    """What is made anew once `text` stands at the end of a file."""
    build, copy, before = built
    path = copy / file
    original = path.read_text()
    path.write_text(original + text)
    try:
        return {name for name, value in build().items() if value != before[name]}
    finally:
        path.write_text(original)


def test_a_chart_and_a_report_throw_nothing_away(built):
    build, copy, before = built
    files = [
        copy / each for each in ("charts/plots.py", "charts/svg.py", "workbench/report/page.py")
    ]
    originals = [file.read_text() for file in files]
    for file, original in zip(files, originals, strict=True):
        file.write_text(original + "\nNEW = 1\n")
    try:
        assert build() == before
    finally:
        for file, original in zip(files, originals, strict=True):
            file.write_text(original)


def test_a_comment_and_a_docstring_throw_nothing_away(built):
    text = '\n\ndef _new():\n    """Nothing."""\n'
    build, copy, before = built
    path = copy / "quantize" / "gptq.py"
    original = path.read_text()
    path.write_text("# A comment.\n" + original.replace('"""GPTQ:', '"""Of GPTQ:', 1))
    try:
        assert build() == before
    finally:
        path.write_text(original)
    assert {"gptq"} <= changed(built, "quantize/gptq.py", text)


def test_a_method_throws_its_own_candidates_away_alone(built):
    assert changed(built, "quantize/rtn.py", "\nNEW = 1\n") == {
        "rtn",
        "quantize rtn",
        "compare rtn",
    }
    assert changed(built, "quantize/gptq.py", "\nNEW = 1\n") >= {
        "gptq",
        "quantize gptq",
        "compare gptq",
    }


def test_what_measures_a_family_throws_its_comparisons_away_alone(built):
    compared = {"compare rtn", "compare gptq", "kernels"}
    assert changed(built, "evaluate/encoder.py", "\nNEW = 1\n") == compared
    assert changed(built, "evaluate/cross_encoder.py", "\nNEW = 1\n") == set()


def test_a_backend_throws_its_own_candidates_away_alone(built):
    assert changed(built, "backends/torch_.py", "\nNEW = 1\n") == {"kernels"}
    assert changed(built, "backends/openvino_.py", "\nNEW = 1\n") == set()


def test_what_all_stand_on_throws_all_away(built):
    assert changed(built, "tensors/quantized.py", "\nNEW = 1\n") >= {
        "rtn",
        "gptq",
        "quantize rtn",
        "compare gptq",
    }


def test_imports_are_found_wherever_they_stand():
    text = "from kerf.core import (\n    cache,\n    paths as p,\n)\n\ndef f():\n    import kerf.pipeline\n    from kerf.quantize.gptq import gptq\n"
    assert {
        "kerf.core",
        "kerf.core.cache",
        "kerf.core.paths",
        "kerf.pipeline",
        "kerf.quantize.gptq",
    } == set(code.imported(text))


def test_clean_removes_what_no_run_can_use_and_nothing_else(built, tmp_path):
    build, copy, _ = built
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sources").symlink_to(data_folder() / "sources")
    place = {"KERF_DATA": str(tmp_path / "data")}
    before = build(**place)
    path = copy / "quantize" / "rtn.py"
    original = path.read_text()
    path.write_text(original + "\nNEW = 1\n")
    try:
        after = build(**place)
        stale, fresh = Path(before["rtn"]), [Path(after[name]) for name in ("rtn", "gptq")]
        environment = {
            **os.environ,
            "PYTHONPATH": str(copy.parent),
            "KERF_ROOT": str(root()),
            **place,
        }

        def clean(*arguments):
            command = [sys.executable, "-m", "kerf", "clean", *arguments]
            return subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            ).stdout

        said = clean("--dry-run")
        assert "made by other code: 1," in said and "nothing was" in said and stale.is_dir()
        assert "removed" in clean() and not stale.exists() and all(each.is_dir() for each in fresh)
        assert "0 of" in clean()
        assert build(**place) == after
    finally:
        path.write_text(original)
