"""The comparison of causal language models, end to end on a small one, against slow and obvious arithmetic."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from support.small import write_causal

import kerf
from kerf import evaluate, pipeline
from kerf.config import Calibration, Evaluation
from kerf.core.errors import InputError
from kerf.data import corpora, overlap
from kerf.evaluate import causal, causal_inference, likelihood
from kerf.evaluate.causal_metrics import detectable
from kerf.evaluate.stats import Documents
from kerf.models import registry

SPEC = Evaluation(texts="news", num_chunks=6, seq_len=32, passages=20, tasks=["piqa"], items=10)
STEP = {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_causal(tmp_path_factory.mktemp("evaluate") / "model"))


@pytest.fixture(scope="module")
def candidate(model):
    return pipeline.build(model, [STEP], Calibration(samples=4, max_length=64))


@pytest.fixture(scope="module")
def compared(model, candidate):
    return evaluate.compare(model, candidate, SPEC)


def losses(opened, chunks):
    """Log-probabilities (tokens, vocabulary) and loss of the second half of every chunk, one token at a time."""
    rows, wanted = [], []
    with torch.no_grad():
        for chunk in torch.from_numpy(chunks):
            logits = opened(chunk[None]).logits[0].double()
            for place in range(len(chunk) // 2, len(chunk)):
                rows.append(logits[place - 1].log_softmax(-1))
                wanted.append(int(chunk[place]))
    logp = torch.stack(rows)
    return logp, -logp[range(len(wanted)), wanted]


def test_every_figure_is_that_of_a_slow_and_obvious_loop(model, candidate, compared):
    chunks = causal.gather(model, SPEC).chunks
    (p, before), (q, after) = (
        losses(opened, chunks) for opened in (kerf.open_model(model), kerf.load(candidate))
    )
    rows = {row["name"]: row for row in evaluate.read(compared)[0]}
    kl = (p.exp() * (p - q)).sum(1)
    change = (-after).exp() - (-before).exp()
    wanted = {
        "perplexity": after.mean().exp(),
        "perplexity_ratio": (after - before).mean().exp(),
        "kl_mean": kl.mean(),
        "kl_max": kl.max(),
        "same_top": (p.argmax(1) == q.argmax(1)).double().mean(),
        "kl_median": np.quantile(kl, 0.5, method="inverted_cdf"),
        "probability_change_mean": change.mean(),
        "probability_change_rms": change.square().mean().sqrt(),
        "loss_pearson": stats.pearsonr(before, after)[0],
    }
    for name, value in wanted.items():
        assert rows[name]["value"] == pytest.approx(float(value), rel=0.01, abs=1e-6), name
    assert rows["perplexity"]["baseline"] == pytest.approx(float(before.mean().exp()), rel=1e-4)
    assert (
        rows["kl_mean"]["n"] == 6 * 16 and "too few independent documents" in rows["kl_mean"]["why"]
    )


def test_the_baseline_against_itself_loses_nothing_and_in_other_batches_next_to_nothing(model):
    for noise_floor, most in ((False, 0.0), (True, 1e-5)):
        rows = {
            row["name"]: row
            for row in evaluate.read(evaluate.compare(model, "", SPEC, noise_floor))[0]
        }
        assert (
            abs(rows["perplexity_ratio"]["value"] - 1) <= most
            and rows["kl_max"]["value"] <= most + 1e-6
        )
        assert rows["same_top"]["value"] == 1 and rows["continuation_exact"]["value"] == 1
        assert rows["flips_lost"]["value"] == rows["flips_gained"]["value"] == 0


def test_last_words_are_right_where_every_token_is_the_most_probable(model, compared):
    everything, opened = causal.gather(model, SPEC), kerf.open_model(model)
    reader = causal.causal.tokenizer(model)
    items = pd.read_parquet(compared / "items.parquet")
    found = items[items.metric == "last_word"].baseline.tolist()
    for (ids, last), right in zip(everything.passages, found, strict=True):
        with torch.no_grad():
            best = opened(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        assert right == float(best[-last - 1 : -1] == ids[-last:])
        assert reader.decode(ids[-last:]).strip().isalpha()


def test_scored_tokens_belong_to_documents_of_the_evaluation_part(model):
    everything, reader = causal.gather(model, SPEC), causal.causal.tokenizer(model)
    documents = corpora.evaluation_documents("news")
    for chunk, owners in zip(everything.chunks[:3], everything.owners[:3], strict=True):
        for owner in np.unique(owners):
            piece = reader.decode(chunk[owners == owner]).strip("\n\ufffd")
            assert piece in documents[owner] + causal.causal.BETWEEN
    overlap.check_overlap(corpora.documents("news", "calibration"), documents)


def test_pictures_mark_what_changed(model, compared):
    picture = evaluate.read(compared)[1]
    assert sum(each["tokens"] for each in picture["by_frequency"]) == 6 * 16
    worst = picture["worst"][0]
    assert worst["kl"] >= picture["worst"][-1]["kl"] and len(worst["tokens"]) == 24
    page = causal.worst(model, compared, picture).to_html()
    assert page.count("<mark>") == sum(sum(each["changed"]) for each in picture["worst"])


def test_what_storing_the_baseline_costs_is_said(model, candidate, compared, monkeypatch, tmp_path):
    cost = evaluate.read(compared)[1]["storage"]
    assert cost["tokens"] == 16 and cost["kept"] == pytest.approx(
        cost["whole"], rel=1e-4
    )  # all 400 tokens are kept
    opened, chunks = kerf.load(candidate), torch.from_numpy(causal.gather(model, SPEC).chunks)
    monkeypatch.setattr(likelihood, "TOP", 20)
    with torch.no_grad():
        causal_inference.score(kerf.open_model(model), chunks, np.arange(6), 1, tmp_path, True)
        found, _ = causal_inference.score(opened, chunks, np.arange(6)[::-1], 2, tmp_path, False)
    assert (
        0
        < float(found["kl"][:16].mean())
        < float(found["full"].mean())
        == pytest.approx(cost["whole"], rel=1e-3)
    )


def test_divergence_by_layer_is_that_of_the_candidate_with_the_layer_in_float(
    model, candidate, compared
):
    rows = evaluate.read(compared)[1]["restored"]
    assert [row["layer"] for row in rows] == ["none", "model.layers.0", "model.layers.1"]
    chunks, original = causal.gather(model, SPEC).chunks[: SPEC.restored], kerf.open_model(model)
    p, _ = losses(original, chunks)
    for row in rows:
        mixed = kerf.load(candidate)
        if row["layer"] != "none":
            mixed.get_submodule(row["layer"]).load_state_dict(
                original.get_submodule(row["layer"]).state_dict()
            )
        q, _ = losses(mixed, chunks)
        assert (
            row["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=0.01)
            and row["contexts"] == 2
        )
    assert rows[0]["kl"] > min(row["kl"] for row in rows)


def test_the_cache_grows_with_the_text_as_its_shape_says(model, compared):
    cache = evaluate.read(compared)[1]["cache"]
    heads, width, layers = 2, 16, 2
    assert [row["tokens"] for row in cache] == [8, 16, 24, 32]
    assert all(
        row["bytes"] == row["tokens"] * 2 * 4 * heads * width * layers for row in cache
    )  # keys, values; float32


def test_too_few_chunks_are_refused_with_the_number_there_is(model):
    with pytest.raises(
        InputError,
        match=r"^evaluation.num_chunks = 9999: 1 to \d+, the chunks of 512 tokens that news has",
    ):
        causal.gather(model, Evaluation(texts="news", num_chunks=9999))


@pytest.mark.parametrize("layer", ["model.norm", "model.layers.1.post_attention_layernorm"])
def test_a_model_that_gives_nan_is_named_with_the_layer_it_begins_at(model, tmp_path, layer):
    broken = write_causal(tmp_path / "broken", seed=1)
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    weights[f"{layer}.weight"] *= 1e39  # beyond float32
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=f"the model gives NaN or infinity, from {layer} on"):
        evaluate.encode(str(broken), "", SPEC)


def test_drawing_documents_is_drawing_their_tokens_together():
    random = np.random.default_rng(0)
    documents = np.repeat([7, 3, 9], [5, 2, 4])
    values, drawn = random.normal(size=11), Documents(documents, 20)
    means, medians = drawn.means(values).replicates, drawn.quantiles(values, 0.5).replicates
    for weights, mean, median in zip(drawn.weights[1:21].astype(int), means, medians, strict=True):
        repeated = np.repeat(values, weights[drawn.member])
        assert mean == pytest.approx(repeated.mean()) and median == np.quantile(
            repeated, 0.5, method="inverted_cdf"
        )


def test_the_smallest_difference_that_would_show_shows_in_four_samples_of_five():
    random, n, flips = np.random.default_rng(0), 400, 0.1
    difference = detectable(n, int(n * flips))
    shown = 0
    for _ in range(300):
        changed = random.binomial(n, flips)
        lost = random.binomial(changed, 0.5 + difference / flips / 2)
        shown += stats.binomtest(lost, changed, 0.5).pvalue < 0.05
    assert 0.68 < shown / 300 < 0.9


def test_a_description_says_what_is_measured(model):
    assert "6 chunks of 32 tokens" in causal.about(causal.gather(model, SPEC))
    assert registry.describe(model)["kind"] == "causal"
