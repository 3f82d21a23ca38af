"""Every kernel of every family answers a text alone as beside longer and shorter ones, as the float model does, and in numbers."""

import numpy as np
import pytest
import torch
from support.small import FAMILIES, write_family

import kerf
from kerf import backends, pipeline
from kerf.backends import onnxruntime_, openvino_, tokens
from kerf.backends import step as backend_step
from kerf.calibration import activations
from kerf.config import STEPS, Calibration, parse
from kerf.core.finite import check_finite
from kerf.models import manifest, model_files, registry
from kerf.models.families import encoder

SPEC = Calibration(samples=16, max_length=64)
MIXED = [
    "a",
    "",
    "A short question?",
    "and one more line of a few words",
    "some longer text of many words " * 12,
    "word " * 600,
]
KERNELS = [
    {"method": "rtn"},
    {"method": "weight_only"},
    {"method": "static"},
    {"method": "bfloat16"},
    {"method": "dynamic"},
    {"method": "bfloat16", "backend": "torch"},
]
ONNX = [{"method": "weight_only", "backend": "onnxruntime"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


def answers(opened, asked):
    """(texts, features) of all texts together, of each alone; rerankers are asked pairs."""
    ask = (
        opened.encode
        if hasattr(opened, "encode")
        else lambda texts, **more: opened.predict([("a query", text) for text in texts], **more)[
            :, None
        ]
    )
    return ask(asked, batch_size=len(asked)), np.concatenate([ask([each]) for each in asked])


def check(model, steps):
    opened = registry.open_model(str(model))
    beside, wanted = answers(opened, MIXED)
    scale = np.linalg.norm(wanted, axis=1).max()
    bytes_before = sum(path.stat().st_size for path in model_files.weights(model))
    assert np.linalg.norm(beside - wanted, axis=1).max() < 1e-3 * scale
    for step in steps:
        made = pipeline.build(str(model), [{"quantize": step}], SPEC)
        together, alone = answers(kerf.load(made), MIXED)
        # Word embeddings too are stored in bytes, under whatever name a graph has them.
        share = manifest.size(made)["bytes_on_disk"] / bytes_before
        assert share < (0.55 if step["method"] == "bfloat16" else 0.45), step
        assert np.isfinite(together).all() and np.isfinite(alone).all(), step
        rounded = step["method"] in ("static", "dynamic", "bfloat16")
        assert (
            np.linalg.norm(together - alone, axis=1).max()
            < (backend_step.ROUNDED if rounded else backend_step.SAME) * scale
        ), step
        if step["method"] != "static":  # whose ranges are of 16 sentences
            assert np.linalg.norm(alone - wanted, axis=1).max() < 0.15 * scale, step


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_answer_any_mix_of_lengths(folder, family):
    check(
        write_family(folder / family, family),
        KERNELS + (ONNX if family in ("ModernBert", "Qwen3", "T5Encoder") else []),
    )


@pytest.mark.parametrize(
    ("family", "library"),
    [(family, openvino_) for family in FAMILIES]
    + [(family, onnxruntime_) for family in ("T5Encoder", "Gemma3Text-bidirectional")],
    ids=lambda value: getattr(value, "__name__", value).rpartition(".")[2],
)
def test_a_float_graph_equals_the_model(folder, family, library):
    opened = registry.open_model(str(write_family(folder / f"{family}-{library.MODEL}", family)))
    sizes = (1, 20, 40, 130, 260)  # on both sides of the windows of 32
    pad = opened.tokenizer.pad_token_id
    batch = tokens.batch([list(range(3, 3 + size)) for size in sizes], pad)
    library.save(library.convert(opened), folder, half=False)
    step = parse(STEPS["quantize"], {"method": "static"}, "q")
    found = library.run(folder, {"settings": library.settings(step)}, 1)(**batch)
    names = encoder.inputs(opened)
    with torch.no_grad():
        wanted = encoder.forward(opened, {name: torch.from_numpy(batch[name]) for name in names})
    cosine = torch.cosine_similarity(torch.from_numpy(found), wanted)
    assert cosine.min() > 0.9999 and found.shape == wanted.shape


@pytest.mark.parametrize("family", ["Bert", "ModernBert", "Qwen3"])
def test_rerankers_answer_any_mix_of_lengths(folder, family):
    check(
        write_family(folder / f"{family}-reranker", family, reranker=True),
        [{"method": "rtn"}, {"method": "weight_only"}, {"method": "dynamic"}],
    )


def test_without_finite_masks_the_candidate_is_not_made(folder, monkeypatch):
    model = write_family(folder / "windowed", "ModernBert")
    monkeypatch.setenv("KERF_FRESH", "9999")
    monkeypatch.setattr(backends, "MASKED", -np.inf)
    with pytest.raises(ValueError, match="a model whose graph|NaN or infinity"):
        pipeline.build(str(model), [{"quantize": {"method": "weight_only"}}], SPEC)


def test_a_kernel_that_answers_otherwise_in_a_batch_is_no_candidate(folder, monkeypatch):
    whole = openvino_.run

    def shifted(*given):
        run = whole(*given)
        return lambda **batch: run(**batch) + (0.3 if len(batch["input_ids"]) > 1 else 0)

    model = write_family(folder / "shifted", "Bert")
    monkeypatch.setattr("kerf.backends.step.check_shapes", lambda *_: None)
    monkeypatch.setenv("KERF_FRESH", "9999")
    monkeypatch.setattr(openvino_, "run", shifted)
    with pytest.raises(
        ValueError,
        match=r"a text of \d+ tokens otherwise alone than beside one of 256: \d\.\d+ of the longest answer apart",
    ):
        pipeline.build(str(model), [{"quantize": {"method": "static"}}], SPEC)


def test_batches_end_where_the_positions_do():
    ids, mask, _ = tokens.batch([[5] * 9, [6] * 50], pad=1, most=50).values()
    assert (
        ids.shape == (2, 50) and ids[0, 9:].tolist() == [1] * 41 and mask.sum(1).tolist() == [9, 50]
    )
    assert tokens.batch([[]])["input_ids"].shape == (1, 8)


def test_what_is_no_number_is_an_error_with_its_text():
    rows = np.zeros((3, 4), np.float32)
    check_finite(rows, ["a", "b", "c"])
    check_finite(rows[:0], [])
    rows[1, 2] = np.nan
    with pytest.raises(
        ValueError, match="gives NaN or infinity for 1 of 3 texts, first for number 1: 'b'"
    ):
        check_finite(rows, ["a", "b", "c"])


def test_a_served_answer_that_is_no_number_is_an_error(folder, monkeypatch):
    made = pipeline.build(
        str(write_family(folder / "served", "Bert")), [{"quantize": {"method": "static"}}], SPEC
    )
    opened = kerf.load(made)
    whole = opened.run
    monkeypatch.setattr(
        opened,
        "run",
        lambda **batch: np.where(
            batch["attention_mask"].sum(1, keepdims=True) > 5, whole(**batch), np.inf
        ),
    )
    with pytest.raises(
        ValueError, match="NaN or infinity for 1 of 2 texts, first for number 1: 'a'"
    ):
        opened.encode(["some longer text of many words", "a"])


def test_calibration_that_meets_no_numbers_names_the_layer(folder):
    opened = registry.open_model(str(write_family(folder / "calibrated", "Bert")))
    encoder.network(opened).get_submodule("encoder.layer.1.attention.self.query").weight.data[0] = (
        torch.inf
    )
    with pytest.raises(
        ValueError,
        match="NaN or infinity for calibration text, first in the inputs of encoder.layer.1",
    ):
        list(activations.collect(encoder.network(opened), encoder.batches(opened, SPEC)))
