"""What is refused before heavy work, at the command line: exit code 2 and one line."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small import write_causal, write_family, write_model

from kerf.data import corpora
from kerf.workbench.cli import main
from kerf.workbench.run import runner

FILE = "model: {model}\ncandidates: {{a: {chain}}}\nevaluation: {evaluation}\n"
CHAIN = "[{quantize: {bits: 4}}]"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("refusals") / "model")


@pytest.fixture
def refused(tmp_path, capsys, model):
    """Check an experiment and return the one line that refuses it."""

    def check(
        *arguments,
        model=model,
        chain=CHAIN,
        evaluation="{texts: [news, everyday], sentences: 30, retrieval: [news], queries: 30, passages: 30, classification: []}",
    ):
        path = tmp_path / "mine.yaml"
        path.write_text(FILE.format(model=model, chain=chain, evaluation=evaluation))
        code = main(["check", str(path), "--out", str(tmp_path / "out"), *arguments])
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1 and "Traceback" not in error, error
        return error

    return check


def test_text_that_overlaps_the_evaluation_text(refused, tmp_path):
    copied = corpora.evaluation_sentences("news", 30)[0]
    lines = [
        f"{number} The sentence that leaks follows this one here. {s}"
        for number, s in enumerate(copied)
    ]
    part = [line for line in lines if corpora.part_of(line) == "calibration"]
    (tmp_path / "leak.txt").write_text("\n".join(part))
    error = refused(
        "-p", f"calibration.texts={tmp_path / 'leak.txt'}", "-p", "calibration.samples=10"
    )
    assert "calibration.texts" in error and "overlap" in error


def test_an_empty_calibration(refused, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "calibration.samples" in refused("-p", f"calibration.texts={tmp_path / 'empty.txt'}")


def test_more_samples_than_there_are(refused):
    assert "calibration.samples = 99999: 1 to" in refused("-p", "calibration.samples=99999")


def test_weights_with_nan_name_the_tensor(refused, model, tmp_path):
    shutil.copytree(model, tmp_path / "nan")
    weights = load_file(tmp_path / "nan/model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][3, 4] = torch.nan
    save_file(weights, tmp_path / "nan/model.safetensors", metadata={"format": "pt"})
    error = refused(model=tmp_path / "nan")
    assert "encoder.layer.1.output.dense.weight holds NaN or infinity" in error


def test_a_directory_that_is_no_model(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is no model" in refused(model=tmp_path / "empty")


def test_a_model_of_pickles(refused, tmp_path, model):
    shutil.copytree(model, tmp_path / "pickles")
    (tmp_path / "pickles/model.safetensors").rename(tmp_path / "pickles/pytorch_model.bin")
    assert "only pickles (pytorch_model.bin)" in refused(model=tmp_path / "pickles")


def test_an_unknown_model(refused):
    assert "did you mean minilm" in refused(model="minilmm")


def test_a_hub_that_cannot_be_reached(refused, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    error = refused(model="someone/some-model")
    assert "model = 'someone/some-model'" in error and "hub" in error


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (
            "{method: neurons, sparsity: 0.25}",
            "{quantize: {group_size: 64}}",
            "a.2.group_size = 64: a divisor of the 96 columns of model.layers.0.mlp.down_proj; these divide: 4, 8, 16, 32",
        ),
        (
            "{method: heads, sparsity: 0.5}",
            "{prune: {pattern: '32:64'}}",
            "a.2.pattern = '32:64': N:M with M a divisor of the 32 columns of model.layers.0.self_attn.o_proj",
        ),
        (
            "{method: heads, sparsity: 0.5}",
            "{prune: {method: heads, sparsity: 0.5}}",
            "a.2.sparsity = 0.5: a share that leaves some of the 1 key and value heads",
        ),
    ],
)
def test_a_step_that_the_smaller_matrices_before_it_cannot_take(
    refused, tmp_path, first, then, said
):
    model = write_causal(tmp_path / "causal")
    assert said in refused(model=model, chain=f"[{{prune: {first}}}, {then}]")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ["calibration.max_length=64"],
            "evaluation.seq_len = 512: at most 256, the positions of this model",
        ),
        (
            ["calibration.max_length=400", "evaluation.seq_len=128"],
            "calibration.max_length = 400: at most 256, the positions of this model",
        ),
    ],
)
def test_chunks_longer_than_the_positions_of_a_language_model(refused, tmp_path, asked, said):
    model = write_causal(tmp_path / "causal", max_position_embeddings=256)
    assert said in refused(
        "-p",
        "calibration.samples=8",
        *(part for each in asked for part in ("-p", each)),
        model=model,
        evaluation="{}",
    )


@pytest.mark.parametrize("reranker", [False, True])
def test_texts_longer_than_the_positions(refused, tmp_path, reranker):
    model = write_family(tmp_path / "model", "XLMRoberta", reranker=reranker)
    evaluation = "{retrieval: [docs], queries: 30}"
    assert "calibration.max_length = 301: at most 300, the positions of this model" in refused(
        "-p", "calibration.max_length=301", model=model, evaluation=evaluation
    )


def test_a_file_in_the_place_of_the_output_directory(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--out" in refused("--out", str(tmp_path / "file"))


def test_an_output_directory_that_cannot_be_written(refused):
    assert "--out = '/proc/kerf'" in refused("--out", "/proc/kerf")


def test_a_full_output_directory(refused, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda _: usage)
    assert "MB free; this one has 1 MB" in refused()


def test_a_good_experiment_is_not_refused(tmp_path, model, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(
        FILE.format(
            model=model,
            chain=CHAIN,
            evaluation="{texts: [news, everyday], sentences: 30, retrieval: [news], queries: 30, passages: 30, classification: []}",
        )
    )
    assert main(["check", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "ready to run" in capsys.readouterr().out
