"""What another package adds in one file, a method, a family, a backend or a metric, works wherever Kerf's own do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from support.small import write_model

import kerf
from kerf import evaluate, pipeline
from kerf.config import BACKENDS, METHODS, PRUNING_METHODS, Calibration, Evaluation
from kerf.config.backends import Backend
from kerf.config.methods import Method
from kerf.config.prune import Prune, Unstructured
from kerf.core.cache import meta
from kerf.core.errors import InputError
from kerf.evaluate import criteria, gates
from kerf.evaluate.metrics import METRICS, Metric
from kerf.models import architecture, manifest, registry
from kerf.models.families import FAMILIES
from kerf.prune.layers import PrunedLayer
from kerf.tensors import parquet

SPEC = Calibration(samples=24, max_length=64)
MEASURED = Evaluation(
    texts=["news", "everyday"],
    sentences=40,
    retrieval=["news"],
    queries=40,
    passages=40,
    classification=[],
)
METHOD = '''
from typing import ClassVar, Literal

import torch
from kerf.config.methods import Method
from kerf.config.quantize import Grouped
from kerf.tensors.quantized import Quantized


class Sevens(Grouped):
    """Keys of the method."""

    sparsity: ClassVar[None] = None
    pattern: ClassVar[None] = None
    method: Literal["sevens"] = "sevens"
    bits: Literal[4] = 4
    code: int = 7


def layer(given):
    """Every code the same, on a grid that says so."""
    rows, columns = given.weight.shape
    scale = given.weight.abs().amax(1, keepdim=True).half()
    codes = torch.full((rows, columns), given.step.code, dtype=torch.uint8)
    return Quantized(codes, scale, torch.zeros(rows, 1, dtype=torch.uint8), 4, columns, False), "all alike"


METHOD = Method("sevens", "every code is seven", Sevens, layer)
'''
FAMILY = """
from kerf.models.families.encoder import *  # noqa: F403
from kerf.models.families.encoder import EXAMPLES  # noqa: F401
"""
EXPERIMENT = """
model: {model}
calibration: {{samples: 24}}
evaluation: {{texts: [news, everyday], sentences: 40, retrieval: [news], queries: 40, passages: 40, classification: []}}
candidates: {{odd: [{{quantize: {{method: sevens, code: 9, embeddings: 32}}}}]}}
criteria: [encoder]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model") / "m"))


def package(folder: Path, group: str, target: str, text: str) -> Path:
    """A package of one file with one entry point, as pip would leave it."""
    name = target.partition(":")[0]
    (folder / f"{name}.py").write_text(text)
    about = folder / f"{name}-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(f"[{group}]\nmine = {target}\n")
    return folder


@pytest.fixture
def entry():
    """Entries of registries for the time of a test."""
    added = []

    def add(entries, each):
        entries.add(each)
        added.append((entries, getattr(each, "name", None) or each.NAME))

    yield add
    for entries, name in added:
        del entries[name]


def test_a_method_of_another_package_runs_in_an_experiment(tmp_path):
    folder = package(tmp_path, "kerf.methods", "sevens_method:METHOD", METHOD)
    (tmp_path / "odd.yaml").write_text(EXPERIMENT.format(model=write_model(tmp_path / "m")))
    path = os.pathsep.join([str(folder), str(Path(kerf.__file__).parents[1])])

    def run(*arguments):
        command = [sys.executable, "-m", "kerf", *arguments]
        return subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )

    listed = {row["name"]: row for row in json.loads(run("list", "methods", "--json").stdout)}
    assert (
        listed["sevens"]["about"] == "quantize: every code is seven"
        and "code" in listed["sevens"]["keys"]
    )
    done = run("run", str(tmp_path / "odd.yaml"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    stored = dict(parquet.read_tensors(tmp_path / "out/data/runs/odd/odd" / parquet.WEIGHTS))
    net = registry.network(registry.open_model(str(tmp_path / "m")))
    assert all((stored[f"{name}.weight"].codes == 9).all() for name in architecture.linears(net))
    (odd,) = json.loads((tmp_path / "out/reports/odd/results.json").read_text())["candidates"][1:]
    assert {row["note"] for row in odd["layers"]} == {"all alike"} and odd["parameters"][
        "code"
    ] == {"value": 9, "from": "experiment"}
    wrong = run(
        "check", str(tmp_path / "odd.yaml"), "-p", "odd.code=x", "--out", str(tmp_path / "out")
    )
    assert (
        wrong.returncode == 2
        and "odd.1.code = 'x'" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )


def test_two_entries_do_not_share_a_name():
    with pytest.raises(InputError, match="kerf.methods = 'rtn': a name that no other entry has"):
        METHODS.add(METHODS["rtn"])


class EverySecond(Unstructured):
    """Keys of a pruning method."""

    scope: ClassVar[str] = "layer"
    method: Literal["every_second"] = "every_second"


def test_a_pruning_method(model, entry):
    def layer(given):
        mask = torch.arange(given.weight.shape[1]) % 2 == 0
        return given.weight * mask, "every second column"

    entry(PRUNING_METHODS, Method("every_second", "every second column goes", EverySecond, layer))
    net = registry.network(
        kerf.load(pipeline.build(model, [{"prune": {"method": "every_second"}}], SPEC))
    )
    assert all(
        not layer.weight[:, 1::2].any() and layer.weight[:, ::2].any()
        for layer in architecture.linears(net).values()
    )


class Narrow(Prune):
    """Keys of a pruning method that changes the network."""

    method: Literal["narrow"] = "narrow"


def test_a_pruning_method_that_changes_the_network(model, entry):
    def narrow(text, step):
        for block in architecture.blocks(text.net).values():
            for layer in (block.intermediate.dense, block.output.dense):
                layer.weight.data = layer.weight.data[:64, :64].contiguous()
                layer.bias.data = layer.bias.data[:64].contiguous()
                layer.out_features, layer.in_features = layer.weight.shape
        text.net.config.intermediate_size = 64
        for name in architecture.linears(text.net):
            yield PrunedLayer(name, None, "narrower", 0.5)

    entry(PRUNING_METHODS, Method("narrow", "64 neurons stay", Narrow, network=narrow))
    made = pipeline.build(model, [{"prune": {"method": "narrow"}}], SPEC)
    net = registry.network(kerf.load(made))
    assert net.config.intermediate_size == 64
    rows = meta(made)["result"]["layers"]
    assert {row["note"] for row in rows} == {"narrower"} and len(rows) == len(
        architecture.linears(net)
    )


def test_a_family_of_models(tmp_path, entry, monkeypatch):
    text = (
        FAMILY
        + '''
NAME, CALLED = "oddities", "an oddity"


def takes(architecture, folder):
    """One class alone."""
    return architecture == "Oddity"


def opens_as(opened):
    """By a mark that opening leaves."""
    return getattr(opened, "odd", False)


def open_folder(folder, device="cpu"):
    """The encoder, marked."""
    from kerf.models.families import encoder

    found = encoder.open_folder(folder, device)
    found.odd = True
    return found
'''
    )
    assert "oddities" not in FAMILIES  # loads the entry points before the package is on the path
    folder = package(tmp_path, "kerf.families", "odd_family", text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), str(Path(kerf.__file__).parents[1])])
    )  # of the measured processes
    entry(FAMILIES, __import__("odd_family"))
    place = write_model(tmp_path / "m", seed=3)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "architectures": ["Oddity"]}))
    assert registry.describe(str(place))["kind"] == "oddities"
    made = pipeline.build(str(place), [{"quantize": {"bits": 8}}], SPEC)
    assert manifest.verify(made)["kind"] == "oddities"
    rows = {
        row["name"]: row for row in evaluate.read(evaluate.compare(str(place), made, MEASURED))[0]
    }
    assert rows["cosine_mean"]["value"] > 0.99
    with pytest.raises(InputError, match="does not know oddities? yet|does not know oddit"):
        registry.check_family(str(place), "reconstruct", "encoder", "causal")


def test_a_backend(model, entry, monkeypatch):
    import kerf.backends.torch_ as torchs

    calls = []
    names = {name: getattr(torchs, name) for name in vars(torchs) if not name.startswith("__")}
    monkeypatch.setitem(
        sys.modules,
        "my_backend",
        SimpleNamespace(
            **names | {"convert": lambda opened: calls.append(1) or torchs.convert(opened)}
        ),
    )
    entry(BACKENDS, Backend("mine", "my_backend", ("dynamic",)))
    folder = pipeline.build(model, [{"quantize": {"method": "dynamic", "backend": "mine"}}], SPEC)
    assert calls and manifest.verify(folder)["backend"] == "mine"
    assert np.isfinite(kerf.load(folder).encode(["A cat sat."])).all()
    with pytest.raises(
        InputError, match="backend = 'mine': openvino, onnxruntime or torch with method static"
    ):
        pipeline.build(model, [{"quantize": {"method": "static", "backend": "mine"}}], SPEC)


def test_a_metric(model, entry, tmp_path):
    def measure(items):
        cosines = items[items.metric == "cosine"]
        return (cosines.candidate > 0.5).to_numpy(float), cosines.document.to_numpy()

    entry(
        METRICS,
        Metric(
            "above_half",
            "above a half",
            "Share of sentences with a cosine above 0.5.",
            "share",
            perfect=1.0,
            families=("encoder",),
            measure=measure,
        ),
    )
    made = pipeline.build(model, [{"quantize": {"bits": 5}}], SPEC)
    measured = evaluate.read(evaluate.compare(model, made, MEASURED))[0]
    rows = [row for row in measured if row["name"] == "above_half"]
    assert sorted(row["domain"] for row in rows) == ["everyday", "news"]
    for row in rows:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1 and row["n"] == 40
    (tmp_path / "mine.json").write_text(
        json.dumps({"schema": 1, "gates": [{"metric": "above_half", "op": ">=", "threshold": 0.1}]})
    )
    asked = {"mine": criteria.read_criteria(tmp_path / "mine.json")}
    assert gates.judge("a", [], rows, {}, asked)["verdict"] == gates.PASS
