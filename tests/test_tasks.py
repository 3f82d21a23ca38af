"""Tasks of lm-eval for a baseline and a candidate: its own scores, paired, on a small local task file."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from support.small import write_causal, write_model

from kerf import config, pipeline
from kerf.core.errors import InputError
from kerf.evaluate import causal, tasks
from kerf.models import families, registry


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_causal(folder / "model")
    tasks.last_words(folder / "files", count=30)
    return folder


@pytest.fixture(scope="module")
def answers(place):
    model = str(place / "model")
    candidate = pipeline.build(
        model,
        [{"quantize": {"bits": 2}}],
        config.Calibration(samples=8, max_length=64),
    )
    return [tasks.run(model, which, ["last_words"], place / "files") for which in ("", candidate)]


def test_scores_are_those_of_an_obvious_loop(place, answers):
    net, reader = (
        registry.open_model(str(place / "model")),
        families.causal.tokenizer(place / "model"),
    )
    for line, row in zip(
        (place / "files" / "last_words.jsonl").read_text().splitlines(), answers[0], strict=True
    ):
        document = json.loads(line)
        before = reader(document["before"])["input_ids"]
        scores = []
        for choice in document["choices"]:
            ids = reader(f"{document['before']} {choice}")["input_ids"]
            with torch.no_grad():
                logs = net(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(
                sum(float(logs[place - 1, ids[place]]) for place in range(len(before), len(ids)))
            )
        assert row["value"] == (int(np.argmax(scores)) == document["answer"])


def test_answers_are_paired(answers):
    (row,) = tasks.compare(*answers)
    before, after = (np.array([each["value"] for each in side], bool) for side in answers)
    assert row["lost"] == (before & ~after).sum() > 0
    assert row["gained"] == (~before & after).sum()
    assert row["difference"] == pytest.approx(after.mean() - before.mean())
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["documents"] == 30


def test_a_metric_that_is_no_yes_or_no_has_no_flips():
    rows = [
        {"task": "t", "metric": "loss", "document": i, "value": value}
        for i, value in enumerate((1.5, 2.0, 0.0) * 4)
    ]
    (row,) = tasks.compare(rows, [{**each, "value": each["value"] + 1} for each in rows])
    assert "lost" not in row
    assert row["difference"] == row["low"] == row["high"] == pytest.approx(1.0)


def test_last_words_are_from_text_and_seeded(place, tmp_path):
    tasks.last_words(tmp_path, count=30)
    written = (tmp_path / "last_words.jsonl").read_text()
    assert written == (place / "files" / "last_words.jsonl").read_text()
    for document in map(json.loads, written.splitlines()):
        assert len(set(document["choices"])) == tasks.CHOICES
        assert len(document["before"].split()) >= causal.WORDS - 1


def test_a_changed_task_file_is_answered_again(place, answers, tmp_path):
    tasks.last_words(tmp_path, count=10)
    assert len(tasks.run(str(place / "model"), "", ["last_words"], tmp_path)) == 10


@pytest.mark.parametrize("case", ["unknown", "encoder", "missing", "few"])
def test_refusals_come_before_a_model_is_opened(place, tmp_path, monkeypatch, case):
    monkeypatch.setattr(registry, "open_source", lambda *_: pytest.fail("a model was opened"))
    model = str(place / "model")
    asked = {
        "unknown": (
            lambda: tasks.run(model, "", ["last_word"], place / "files"),
            "tasks = 'last_word'.*last_words",
        ),
        "encoder": (
            lambda: tasks.run(str(write_model(tmp_path / "e")), "", ["last_words"]),
            "model = .*causal",
        ),
        "missing": (
            lambda: tasks.run(model, "", ["last_words"], place / "files"),
            r"pip install -e 'lib\[lm-eval\]'",
        ),
        "few": (lambda: tasks.last_words(tmp_path, count=10**6), "passages = 1000000: 1 to"),
    }
    if case == "missing":
        monkeypatch.setattr(tasks, "find_spec", lambda name: find_spec("no_such_package"))
    with pytest.raises(InputError, match=asked[case][1]):
        asked[case][0]()
