"""What CI, a pull request and a model hub read of a run: as red as `--gate`, and nothing lost on the way."""

from xml.etree import ElementTree

import pytest
from huggingface_hub import ModelCard
from support.exports import BROKEN, entry, gate, row, run

from kerf.workbench.report import exports, known_issues
from kerf.workbench.report.exports import checklist
from kerf.workbench.report.known_issues import issues, untested
from kerf.workbench.report.text_format import plain


@pytest.fixture
def written(tmp_path):
    def write(results):
        exports.write(results, tmp_path)
        return tmp_path

    return write


def red(folder) -> int:
    """Failures and errors, as a reader of JUnit counts them."""
    cases = ElementTree.parse(folder / "gates.xml").getroot().iter("testcase")
    return sum(case.find("failure") is not None or case.find("error") is not None for case in cases)


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "INCONCLUSIVE"])
@pytest.mark.parametrize("released", [True, False])
def test_the_file_is_red_when_the_gate_is_not_passed(written, verdict, released):
    results = run(
        entry("good", [gate("PASS")]),
        entry("other", [gate(verdict)]),
        release=["good", "other"] if released else ["good"],
    )
    assert bool(red(written(results))) == (results["verdict"] != "PASS")


def test_a_release_candidate_without_a_gate_is_red_as_its_verdict_is(written):
    results = run(entry("free", []), release=["free"])
    assert results["verdict"] == "INCONCLUSIVE" and red(written(results)) == 1


def test_a_broken_candidate_is_an_error_for_release_or_not(written):
    folder = written(
        run(
            entry("good", [gate("PASS")]),
            entry("bad", [], status="failed", error=BROKEN, metrics=[]),
            release=["good"],
        )
    )
    suite = ElementTree.parse(folder / "gates.xml").getroot().find("testsuite[@name='bad']")
    (error,) = suite.iter("error")
    assert suite.get("errors") == "1" and "cell 7: ValueError: <img src=x> &" in error.get(
        "message"
    )
    assert "\x1b" not in error.text and "]]>" in error.text


def test_names_are_written_so_that_readers_keep_them_apart(written):
    gates = [gate("FAIL", 0.85), gate("PASS", 0.85, threshold=0.8)]
    root = ElementTree.parse(
        written(run(entry("int4.g64", gates), release=["int4.g64"])) / "gates.xml"
    ).getroot()
    cases = list(root.iter("testcase"))
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == 2
    assert {case.get("classname") for case in cases} == {
        "small.int4-g64"
    }  # Jenkins splits at the last dot
    (suite,) = root
    assert (
        suite.get("tests"),
        suite.get("failures"),
        suite.get("errors"),
        suite.get("skipped"),
    ) == ("2", "1", "0", "0")
    text = cases[0].find("failure").text
    assert "bound: 0.85" in text and "threshold: 0.9" in text and "because | of <this>" in text


def test_an_undecided_gate_says_what_would_decide(written):
    root = ElementTree.parse(
        written(run(entry("a", [gate("INCONCLUSIVE", 0.88, needed=900)]), release=["a"]))
        / "gates.xml"
    ).getroot()
    (failure,) = root.iter("failure")
    assert failure.get(
        "type"
    ) == "INCONCLUSIVE" and "about 900 sentences would decide" in failure.get("message")


def test_boxes_are_ticked_by_what_was_measured(written):
    notes = [
        {"name": "layer.0", "note": "rounded to nearest"},
        {"name": "layer.1", "note": "", "reread": True},
    ]
    good, bad = (
        entry("good", [gate("PASS")]),
        entry("bad", [gate("FAIL", 0.85)], layers=notes, claims=[gate("FAIL", 0.8)]),
    )
    assert all(done for done, _ in checklist(good))
    assert sum(not done for done, _ in checklist(bad)) == 4
    text = (written(run(good, bad, release=["good", "bad"])) / "release.md").read_text()
    assert (
        text.count("- [ ]") == 4
        and "rounded to nearest: layer.0" in text
        and "proves nothing" in text
    )


def test_issues_are_those_of_the_figures():
    text = "\n".join(issues(entry("a", [gate("INCONCLUSIVE", 0.88, needed=900)])))
    for words in (
        "not decided",
        "900 sentences",
        "takes more memory",
        "within measurement noise",
        "no speed",
        "no gate judges it",
    ):
        assert words in text.lower(), words
    quiet = entry(
        "b", [gate("PASS")], kernel="real", metrics=[row("cosine_mean", 0.96, 0.95, 0.97)]
    )
    assert issues(quiet) == []
    noisy = entry(
        "c",
        [gate("PASS", 0.905)],
        kernel="real",
        metrics=[row("cosine_mean", 0.91, 0.905, 0.92, noise=(0.98, 1.0))],
    )
    assert "less than the difference between two measurements of the baseline" in issues(noisy)[0]


def test_what_was_not_tested_follows_from_what_was():
    candidate = entry("a", [gate("PASS")])
    results = run(candidate, release=["a"])
    text = "\n".join(untested(results, [candidate]))
    assert (
        "A \\| processor with 2 threads" in text
        and "Other languages than English." in text
        and "Whether it is faster: a." in text
    )
    results["settings"]["evaluation.texts"]["value"] = "mine.txt"
    faster = entry(
        "a", [], metrics=[row("speedup", 3.0, 2.5, 3.5), row("perplexity", 20.0, 19.0, 21.0)]
    )
    text = "\n".join(untested(results, [faster]))
    assert "that of mine.txt" in text and "faster" not in text and "Contexts longer" in text


def test_the_hub_reads_the_card_back(written):
    folder = written(
        run(entry("int4", [gate("PASS")]), entry("int2", [gate("FAIL", 0.8)]), release=["int4"])
    )
    assert not (folder / "int2" / "README.md").exists()
    card = ModelCard.load(folder / "int4" / "README.md")
    found = {each.metric_type: each for each in card.data.eval_results}
    assert (
        card.data.model_name == "minilm-int4"
        and card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    )
    assert card.data.license == "apache-2.0" and card.data.tags == ["kerf", "quantize", "gptq"]
    assert found["cosine_mean"].metric_value == 0.96 and found["cosine_mean"].metric_args == {
        "low": 0.95,
        "high": 0.97,
        "baseline": 1.0,
        "n": 400,
    }
    assert found["human_spearman_lee"].dataset_name == "Lee" and "rss_peak_bytes" not in found
    assert "| Mean cosine | 0.960 | 0.950 to 0.970 |" in card.text and "Yes" in card.text


def test_a_card_of_an_earlier_run_does_not_stay(written):
    written(run(entry("int4", [gate("PASS")]), entry("int2", [gate("PASS")]), release=["int4"]))
    folder = written(
        run(entry("int4", [gate("PASS")]), entry("int2", [gate("PASS")]), release=["int2"])
    )
    assert not (folder / "int4" / "README.md").exists() and (folder / "int2" / "README.md").exists()
    assert not [path.name for path in folder.rglob("*.part")]


def test_foreign_text_cannot_make_markup():
    assert plain("a|b\n<img src=x> [x](y) `z`") == "a\\|b &lt;img src=x&gt; \\[x\\](y) \\`z\\`"


def test_a_directory_names_no_model_of_the_hub(written):
    results = run(entry("int4", [gate("PASS")]), release=["int4"])
    results["model"]["id"] = "/home/somebody/my-model"
    text = (written(results) / "int4" / "README.md").read_text()
    assert (
        "base_model" not in text
        and "license" not in text
        and "my-model-int4" in text
        and "/home" not in text
    )


def openvino_run(flags, threads):
    results = run(
        *(entry(name, [gate("PASS")]) for name in ("int8", "half", "plain")), release=["int8"]
    )
    steps = {
        "int8": {"method": "static", "compute_dtype": "bfloat16"},
        "half": {"method": "bfloat16"},
        "plain": {"method": "static", "compute_dtype": "float32"},
    }
    for candidate in results["candidates"]:
        if step := steps.get(candidate["name"]):
            candidate |= {"backend": "openvino", "steps": [{"quantize": step}]}
    results["manifest"]["cpu"] = {"model": "a CPU", "flags": flags, "threads": threads}
    return [line for line in known_issues.of_the_run(results) if "two threads" in line]


def test_what_ran_on_two_threads_although_one_was_set_is_named():
    (line,) = openvino_run(["amx_bf16"], 1)
    assert line.endswith(": int8, half.")
    assert not openvino_run(["avx512_bf16"], 1) and not openvino_run(["amx_bf16"], 2)
