"""Two candidates paired: the draws of the report, winners that two tests agree on, and refusals before any arithmetic."""

import json

import numpy as np
import pytest
from support.small import write_causal, write_model, write_reranker

from kerf import pipeline
from kerf.config import Calibration, Evaluation
from kerf.core.errors import InputError
from kerf.evaluate import ab, common, comparison_inputs
from kerf.evaluate.bootstrap import BootstrapMetrics
from kerf.evaluate.metrics import METRICS
from kerf.workbench.cli import main

SPEC = Evaluation(
    texts=["news", "everyday"],
    sentences=40,
    retrieval=["news"],
    queries=40,
    passages=40,
    classification=[],
    num_chunks=40,
    seq_len=32,
    restored=0,
    tasks=["piqa"],
    items=20,
)
CALIBRATION = Calibration(samples=8, max_length=64)


def both(model, first):
    chains = {"a": first, "b": [{"quantize": {"method": "rtn", "bits": 2, "group_size": 32}}]}
    return [
        comparison_inputs.candidate_input(
            f"small/{name}", model, steps, pipeline.build(model, steps, CALIBRATION), SPEC
        )
        for name, steps in chains.items()
    ]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """The baseline and 2 bits."""
    return both(str(write_model(tmp_path_factory.mktemp("ab") / "encoder")), [])


@pytest.fixture(scope="module")
def languages(tmp_path_factory):
    """8 bits and 2."""
    return both(
        str(write_causal(tmp_path_factory.mktemp("ab") / "causal")),
        [{"quantize": {"method": "rtn", "bits": 8, "group_size": 32}}],
    )


@pytest.fixture(scope="module")
def rerankers(tmp_path_factory):
    """The baseline and 2 bits."""
    return both(str(write_reranker(tmp_path_factory.mktemp("ab") / "reranker")), [])


@pytest.fixture(scope="module")
def paired_rerankers(rerankers):
    return ab.compare(*rerankers)


@pytest.fixture(scope="module")
def paired_encoders(encoders):
    return ab.compare(*encoders)


@pytest.fixture(scope="module")
def paired_languages(languages):
    return ab.compare(*languages)


@pytest.mark.parametrize("kind", ["encoders", "languages", "rerankers"])
def test_the_draws_are_those_of_the_report(kind, request):
    for side in request.getfixturevalue(kind):
        drawn = BootstrapMetrics(side.items)
        for (name, domain), row in side.rows.items():
            if row["low"] is None or name in (
                "cosine_p01",
                *ab.APART,
            ):  # order statistics, and what has no items
                continue
            assert drawn.of(name, domain).interval() == pytest.approx(
                [row["low"], row["high"]], rel=1e-3, abs=1e-3
            ), name  # kept as float32


@pytest.mark.parametrize("kind", ["encoders", "languages", "rerankers"])
def test_the_lesser_cut_wins_on_what_is_measured_and_loses_on_bytes(kind, request):
    a, b = request.getfixturevalue(kind)
    found = request.getfixturevalue(f"paired_{kind}")
    rows = {(row["name"], row["domain"]): row for row in found["metrics"]}
    fidelity = {
        "encoders": "similarity_spearman",
        "languages": "kl_mean",
        "rerankers": "score_spearman",
    }[kind]
    of_fidelity = [row for (name, _), row in rows.items() if name == fidelity]
    assert of_fidelity and all(row["winner"] == "a" for row in of_fidelity)
    bytes_on_disk = rows.get(("bytes_on_disk", None))
    assert kind != "languages" or bytes_on_disk["winner"] == "b" and bytes_on_disk["low"] is None
    assert set(rows) == {*a.rows, *((name, None) for name in a.figures)} and not any(
        row["winner"] for row in rows.values() if not row["how"]
    )
    for row in rows.values():
        assert row["difference"] == row["b"] - row["a"]
        if (
            row["how"] == "paired"
            and row["name"] not in ("cosine_p01", "kl_p999")
            and row["low"] is not None
        ):
            assert row["low"] - 1e-6 <= row["difference"] <= row["high"] + 1e-6, row
    assert METRICS[fidelity].label in ab.conclusion(found).splitlines()[0]
    json.dumps(found, allow_nan=False)


def test_a_candidate_is_as_good_as_itself(languages):
    found = ab.compare(languages[0], languages[0])
    assert all(row["difference"] == 0 and row["winner"] is None for row in found["metrics"])
    assert all(
        row["low"] == row["high"] == 0
        for row in found["metrics"]
        if row["how"] == "paired" and row["low"] is not None
    )
    assert all(
        row["a_better"] == row["b_better"] == 0 and not row["items"] for row in found["changed"]
    )


def test_changed_items_are_known_by_their_text(paired_languages):
    found = {row["metric"]: row for row in paired_languages["changed"]}
    assert (
        found["kl_mean"]["of"] == "documents"
        and found["kl_mean"]["a_better"] > found["kl_mean"]["b_better"]
    )
    first = found["kl_mean"]["items"][0]
    assert first["better"] == "a" and first["a"] < first["b"] and len(first["text"]) > 20


def answers(right, name="x", n=None):
    """A side whose only metric is recall@1 of one query a document."""
    table = common.group(
        "retrieval_recall_1",
        candidate=np.array(right),
        baseline=np.ones(len(right)),
        document=np.arange(len(right)),
        text=[f"query {i}" for i in range(len(right))],
    ).to_pandas()
    row = {
        "name": "retrieval_recall_1",
        "value": float(np.mean(right)),
        "low": None,
        "high": None,
        "baseline": 1.0,
        "n": len(right),
    }
    return comparison_inputs.ComparisonInput(
        name, "m", [], {("retrieval_recall_1", None): row}, {}, table
    )


def flips(n, only_a, only_b):
    a, b = np.ones(n), np.ones(n)
    a[:only_b], b[only_b : only_b + only_a] = 0.5, 0.5
    (row,) = ab.compare(answers(a), answers(b))["metrics"]
    return row


def test_a_few_flips_are_not_a_win_though_every_draw_has_one():
    few, enough = flips(100, 5, 0), flips(100, 6, 0)
    assert (
        few["high"] < 0
        and few["mcnemar_p"] > 0.05
        and few["winner"] is None
        and few["needed_n"] == 120
    )
    assert enough["winner"] == "a" and (enough["a_only"], enough["b_only"]) == (6, 0)


def test_as_many_items_as_are_asked_for_decide():
    undecided = flips(100, 12, 6)
    assert undecided["winner"] is None
    times = undecided["needed_n"] / 100 + 0.3
    assert flips(round(100 * times), round(12 * times), round(6 * times))["winner"] == "a"
    assert flips(100, 6, 6)["needed_n"] is None


def test_too_few_items_for_a_percentile_ask_for_as_many_as_have_one(paired_encoders):
    rows = [row for row in paired_encoders["metrics"] if row["name"] == "cosine_p01"]
    assert len(rows) == 2 and all(row["winner"] is None for row in rows)
    assert {row["needed_n"] for row in rows} == {368}


def test_scores_that_an_older_run_did_not_keep_leave_their_metric_open(encoders):
    old = [
        comparison_inputs.ComparisonInput(
            **{**vars(side), "items": side.items[side.items.metric == "cosine"]}
        )
        for side in encoders
    ]
    rows = {row["name"]: row for row in ab.compare(*old)["metrics"]}
    assert (
        rows["cosine_mean"]["how"] == "paired"
        and rows["similarity_spearman"]["why"] == "the run keeps no scores of its items"
    )


def test_times_of_another_machine_are_not_compared(languages, paired_languages):
    a, b = languages
    (row,) = [row for row in paired_languages["metrics"] if row["name"] == "load_seconds"]
    assert row["how"] == "apart" and row["low"] <= row["difference"] <= row["high"]
    other = comparison_inputs.ComparisonInput(
        **{**vars(b), "origin": {**b.origin, "machine": ["another", 1]}}
    )
    (row,) = [row for row in ab.compare(a, other)["metrics"] if row["name"] == "load_seconds"]
    assert row["how"] == "" and "another machine" in row["why"] and row["winner"] is None


@pytest.fixture
def out(tmp_path, languages):
    """A history of two runs of one experiment."""
    for run in ("20260101T000000Z-aaaa", "20260102T000000Z-bbbb"):
        write_run(tmp_path, "small", run, languages)
    return tmp_path


def write_run(out, experiment, run, candidates, **change):
    folder = out / "reports" / "history" / experiment / run
    folder.mkdir(parents=True)
    entries = []
    for side in candidates:
        name = side.name.rpartition("/")[2]
        side.items.to_parquet(folder / f"{name}.parquet")
        entries.append(
            {
                "name": name,
                "status": "ok",
                "steps": side.steps,
                "metrics": list(side.rows.values()),
                **side.figures,
            }
        )
    first = candidates[0].origin
    content = {
        "schema": 1,
        "experiment": experiment,
        "model": {"id": candidates[0].model},
        "candidates": entries,
        "settings": {
            key: {"value": value, "from": "default"} for key, value in first["settings"].items()
        },
        "manifest": {
            "data": {key: first[key] for key in ("weights", "evaluation")},
            "cpu": {"model": "x", "threads": 1},
        },
    }
    (folder / "results.json").write_text(json.dumps(content | change))
    return folder


def asked(capsys, out, *names) -> tuple[int, str, str]:
    code = main(["ab", *names, "--out", str(out)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_newest_run_is_taken_or_the_one_that_is_named(capsys, out):
    code, text, _ = asked(capsys, out, "small/a", "small/20260101T000000Z-aaaa/b")
    assert (
        code == 0 and "wins on" in text and "A  small/a" in text and "20260102T000000Z-bbbb" in text
    )
    code, text, _ = asked(capsys, out, "small/a", "small/b", "--json")
    found = json.loads(text)
    assert (
        code == 0
        and found["a"]["run"] == "20260102T000000Z-bbbb"
        and {"metrics", "changed"} < set(found)
    )


def damage_newer(folder):
    content = json.loads((folder / "results.json").read_text())
    del content["candidates"]  # a newer Kerf may name them otherwise
    (folder / "results.json").write_text(json.dumps({**content, "schema": 2}))


def damage_status(folder):
    content = json.loads((folder / "results.json").read_text())
    content["candidates"][1] |= {"status": "failed", "error": {"message": "ValueError: no"}}
    (folder / "results.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("smal/b", None, "did you mean small?"),
        ("small/c", None, "accepted: a, b"),
        ("small/20260103T000000Z-cccc/b", None, "did you mean 20260102T000000Z-bbbb"),
        ("small", None, "EXPERIMENT/CANDIDATE"),
        ("../small/b", None, "small"),
        ("small/b", damage_newer, "has schema 2, this one reads 1"),
        ("small/b", damage_status, "it failed: ValueError: no"),
        (
            "small/b",
            lambda folder: (folder / "b.parquet").unlink(),
            "b.parquet is missing, so run it again",
        ),
        (
            "small/b",
            lambda folder: (folder / "b.parquet").write_bytes(b"PAR1 no"),
            "b.parquet is damaged",
        ),
        (
            "small/b",
            lambda folder: (folder / "results.json").write_text('{"schema": 1'),
            "a readable results.json",
        ),
        (
            "small/b",
            lambda folder: (folder / "results.json").write_text('{"schema": "1"}'),
            "a readable results.json",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(capsys, out, name, harm, said):
    if harm:
        harm(out / "reports/history/small/20260102T000000Z-bbbb")
    code, text, error = asked(capsys, out, "small/20260101T000000Z-aaaa/a", name)
    assert (
        code == 2
        and not text
        and error.count("\n") == 1
        and error.startswith("kerf: B = ")
        and said in error
    )


def test_no_run_at_all_says_so(capsys, tmp_path):
    code, _, error = asked(capsys, tmp_path, "small/a", "small/b")
    assert code == 2 and "A = 'small/a': a finished run" in error


def test_other_models_and_other_items_are_refused_by_name(capsys, out, encoders, languages):
    write_run(out, "other", "20260101T000000Z-aaaa", encoders)
    code, _, error = asked(capsys, out, "small/a", "other/b")
    assert code == 2 and "a candidate of the same model" in error and error.count("\n") == 1
    fewer = [
        comparison_inputs.ComparisonInput(
            **{
                **vars(side),
                "items": side.items.groupby("metric", observed=True).head(20),
                "origin": {**side.origin, "settings": {"evaluation.num_chunks": 2}},
            }
        )
        for side in languages
    ]
    write_run(out, "fewer", "20260101T000000Z-aaaa", fewer)
    code, _, error = asked(capsys, out, "small/a", "fewer/b")
    assert code == 2 and "evaluation.num_chunks = 2 against 40" in error
    swapped = languages[1].items.astype({"text": object})
    swapped.loc[0, "text"] = "Another document."
    with pytest.raises(InputError, match="measured on the items"):
        ab.compare(
            languages[0],
            comparison_inputs.ComparisonInput(**{**vars(languages[1]), "items": swapped}),
        )
