"""Data of one's own: the forms that it has, what is refused in one line, and that no report shows where it lies."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.small import write_causal, write_model

from kerf.config import Evaluation
from kerf.core.errors import InputError
from kerf.data import beir, corpora, datasets, own_files, own_ratings, own_tables
from kerf.evaluate import common, encoder, encoder_inputs, fidelity
from kerf.evaluate.bootstrap import BootstrapMetrics
from kerf.evaluate.protocol import Comparison
from kerf.models.families import causal
from kerf.workbench.cli import main
from kerf.workbench.run import data_summary, estimate, pilot, plan
from kerf.workbench.run.experiment import read

TEXTS = [
    f"The first line of number {n}.\nIts second line, with a comma, ends here." for n in range(40)
]
MESSAGES = [
    [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": "Yes."}]
    for n in range(40)
]


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(folder: Path, form: str, **columns: list) -> Path:
    """A table in one of the forms."""
    import pandas as pd

    table, path = pd.DataFrame(columns), folder / f"rows.{form}"
    if form == "csv":
        table.to_csv(path, index=False)
    elif form == "tsv":
        table.to_csv(path, index=False, sep="\t")
    elif form == "parquet":
        table.to_parquet(path)
    elif form == "saved":
        from datasets import Dataset

        Dataset.from_pandas(table).save_to_disk(str(path))
    else:
        write_lines(path, table.to_dict("records"))
    return path


@pytest.mark.parametrize("form", ["jsonl", "ndjson", "csv", "tsv", "parquet", "saved"])
def test_documents_of_a_table_span_lines(tmp_path, form):
    path = written(tmp_path, form, title=["t"] * 42, text=[*TEXTS, "", TEXTS[0]])
    found = own_files.read("texts", str(path))
    assert found.texts == TEXTS
    assert (found.rows, found.empty, found.duplicates, found.column) == (42, 1, 1, "text")
    parts = [corpora.documents(str(path), part) for part in corpora.PARTS]
    assert sorted(parts[0] + parts[1]) == sorted(TEXTS) and min(map(len, parts)) > 5
    other = own_files.read("texts", f"{path}::title")
    assert other.texts == ["t"]
    with pytest.raises(InputError, match="texts = 'body': a column of rows.*: title or text"):
        own_files.read("texts", f"{path}::body")


def test_a_text_file_has_a_document_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\r\nOne.\n")
    found = own_files.read("texts", str(tmp_path / "a.txt"))
    assert (found.texts, found.rows, found.empty, found.duplicates) == (["One.", "Two."], 4, 1, 1)


def test_the_family_is_own_unless_the_user_names_it(tmp_path):
    path = str(written(tmp_path, "jsonl", text=TEXTS))
    assert corpora.family_of(path) == "own"
    assert corpora.family_of(f"{path}@news") == corpora.family_of(f"{path}::text@news") == "news"
    assert corpora.label(f"{path}::text@news") == "rows.jsonl::text"
    with pytest.raises(InputError, match="'novels': a family: encyclopedia, news, technical"):
        corpora.documents(f"{path}@novels", "calibration")
    odd = tmp_path / "a@news.txt"
    odd.write_text("One.\n")
    assert (
        corpora.family_of(str(odd)) == "own"
        and corpora.documents([str(odd)], "calibration") is not None
    )


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is no JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is no object"),
        ("a.jsonl", b'{"text": 1}\n', "texts, or messages"),
        ("a.jsonl", b'{"text": [{"role": "user"}]}\n', "texts, or messages"),
        ("a.jsonl", b"[" * 100_000, "can be read"),
        ("a.jsonl", b"\xff\xfe", "can be read"),
        ("a.csv", b'text,b\n"x,y\n', "can be read"),
        ("a.csv", b"", "can be read"),
        ("a.parquet", b"PAR1 no table PAR1", "can be read"),
        ("a.txt", b"\x00\x01", "UTF-8"),
        ("a.pkl", b"\x80\x04N.", "UTF-8"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, content, cause):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=cause) as refusal:
        own_files.read("texts", str(tmp_path / name))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="folder saved by datasets"):
        own_files.read("texts", str(tmp_path))


def test_what_is_too_large_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, "parquet", text=["x" * 10_000] * 1000)  # 10 MB in a few kB
    assert path.stat().st_size < 1e6
    monkeypatch.setattr(own_tables, "LARGEST", 10**6)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 2_000_000}))
    monkeypatch.setattr(own_tables, "MOST_ROWS", 999)
    for file in (path, tmp_path / "a.jsonl"):
        with pytest.raises(InputError, match="too many|more than"):
            own_files.read("texts", str(file))


def test_conversations_are_read_under_the_chat_template(tmp_path):
    path = str(write_lines(tmp_path / "chat.jsonl", [{"messages": m} for m in MESSAGES]))
    documents = corpora.documents(path, "calibration")
    assert documents[0].endswith("\n\nYes.")
    tokenizer = causal.tokenizer(write_causal(tmp_path / "model"))
    with pytest.raises(InputError, match=r"a model with a chat template .*it has none"):
        causal.stream(tokenizer, documents)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    for texts in (documents, corpora.evaluation_documents(path)):
        tokens, owners = causal.stream(tokenizer, texts)
        read = tokenizer.decode(tokens[owners == 0])
        assert read == f"[user]{texts[0].split(chr(10))[0]}[assistant]Yes.\n\n"
    swapped = [[{**m, "role": "system"} for m in messages] for messages in MESSAGES]
    other = write_lines(tmp_path / "other.jsonl", [{"messages": m} for m in swapped])
    assert corpora.digest(path) != corpora.digest(str(other))


def write_beir(folder: Path, queries: int = 30, passages: int = 100, split: str = "test") -> Path:
    """A collection in which query n is answered by passage n (grade 2) and n + 1 (grade 1)."""
    (folder / "qrels").mkdir(parents=True)
    rows = [
        {"_id": f"p{n}", "title": f"Title {n}", "text": f"Passage {n} about {n * 7}."}
        for n in range(passages)
    ]
    write_lines(folder / "corpus.jsonl", rows)
    rows = [{"_id": f"q{n}", "text": f"What of passage {n}?"} for n in range(queries)]
    write_lines(folder / "queries.jsonl", rows)
    judged = [f"q{n}\tp{n + more}\t{2 - more}\n" for n in range(queries) for more in (0, 1)]
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / f"{split}.tsv").write_text(header + "".join(judged))
    return folder


def test_a_beir_folder_is_a_collection_with_grades(tmp_path):
    folder = write_beir(tmp_path / "mine")
    found = datasets.retrieval(str(folder), 20, most=50)
    assert (found.name, found.family) == ("mine", "own")
    assert len(found.queries) == len(found.relevant) == 20 and len(found.passages) == 50
    for query, grades in zip(found.queries, found.relevant, strict=True):
        number = int(query.split()[-1][:-1])
        texts = {found.passages[place].split(" Passage")[0]: g for place, g in grades.items()}
        assert texts == {f"Title {number}": 2.0, f"Title {number + 1}": 1.0}
    assert len(np.unique(found.documents)) == 10  # neighbours share a passage
    every = datasets.retrieval(str(folder), 1500, most=5)
    assert len(every.queries) == 30 and len(every.passages) == 31  # all that are judged stay


def test_what_a_beir_folder_does_not_use_is_counted(tmp_path):
    folder = write_beir(tmp_path / "mine", split="dev")
    with open(folder / "queries.jsonl", "a") as file:
        file.write('{"_id": "alone", "text": "No judgement"}\n{"_id": "none", "text": " "}\n')
    with open(folder / "qrels" / "dev.tsv", "a") as file:
        file.write("q0\tp5\t0\nq0\tgone\t1\n")
    found = beir.read("evaluation.retrieval", folder)
    assert found.split == "dev"
    assert found.unused == {
        "empty queries": 1,
        "empty passages": 0,
        "judgements of unknown ids": 1,
        "judgements of 0 or without text": 1,
        "queries without judgement": 1,
    }
    write_beir(tmp_path / "two", split="test")
    (tmp_path / "two" / "qrels" / "train.tsv").write_text("a\tb\tc\nq0\tp9\t1\n")
    assert beir.read("evaluation.retrieval", tmp_path / "two").split == "test"


@pytest.mark.parametrize(
    ("file", "more", "cause"),
    [
        ("corpus.jsonl", '{"_id": "p3", "text": "again"}\n', "each _id once"),
        ("queries.jsonl", '{"text": "no id"}\n', "_id, text"),
        ("queries.jsonl", '{"_id": 7, "text": 8}\n', "_id, text"),
        ("qrels/test.tsv", "x\ty\t1\n" * 20, "20 of 80 judgements name others"),
        ("qrels/test.tsv", "q1\tp1\tgood\n", "a number, score"),
        ("qrels/test.tsv", "q1\tp1\t3\n", "one grade of a pair"),
    ],
)
def test_a_damaged_beir_folder_is_refused(tmp_path, file, more, cause):
    folder = write_beir(tmp_path / "mine")
    with open(folder / file, "a") as opened:
        opened.write(more)
    with pytest.raises(InputError, match=cause):
        datasets.retrieval(str(folder), 20)


def test_a_folder_without_judgements_is_refused(tmp_path):
    folder = write_beir(tmp_path / "mine")
    (folder / "qrels" / "test.tsv").unlink()
    with pytest.raises(InputError, match="a folder with judgements"):
        datasets.retrieval(str(folder), 20)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"corpus.jsonl, queries.jsonl and qrels"):
        datasets.retrieval(str(folder), 20)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("names", [("text1", "text2", "score"), ("a", "b", "c")])
def test_rated_pairs_of_a_table(tmp_path, form, names):
    pairs = [("one", "two", 1.5), ("two", "three", 4.0), ("four", "five", 0.0)]
    columns = dict(zip(names, map(list, zip(*pairs, strict=True)), strict=True))
    path = written(tmp_path, form, **columns)
    texts, left, right, scores = own_ratings.rated(str(path))
    found = [(texts[a], texts[b], s) for a, b, s in zip(left, right, scores, strict=True)]
    assert found == pairs and len(texts) == 5


@pytest.mark.parametrize("score", [["high", "low"], ["inf", "1"], ["2", "2"]])
def test_pairs_without_scores_are_refused(tmp_path, score):
    path = written(tmp_path, "csv", text1=["a", "b"], text2=["c", "d"], score=score)
    with pytest.raises(InputError, match=r"evaluation.similarity = 'rows.csv': .*column score"):
        own_ratings.rated(str(path))


def test_pairs_are_resampled_with_all_that_share_a_text():
    left, right = np.array([0, 1, 3, 5, 7, 9, 11, 13]), np.array([1, 2, 4, 6, 8, 10, 12, 14])
    units = fidelity.joined(left, right)
    assert units[0] == units[1] == units[2] and len(np.unique(units)) == 7
    hub = fidelity.joined(np.zeros(9, int), np.arange(1, 10))
    assert len(np.unique(hub)) == 10  # all are joined: each text by itself


def test_a_labelled_table_is_split_where_it_has_fewer_rows(tmp_path):
    path = written(tmp_path, "csv", text=TEXTS, label=["a", "b"] * 20)
    found = datasets.labelled(str(path), 600, 600)
    assert (found.name, found.family, found.train, len(found.texts)) == ("rows.csv", "own", 20, 40)
    assert dict(zip(found.texts, found.labels, strict=True))[" ".join(TEXTS[1].split())] == "b"
    path = written(tmp_path, "tsv", text=[*TEXTS, TEXTS[0]], label=["a", "b"] * 20 + ["b"])
    with pytest.raises(InputError, match="1 stand there with several"):
        datasets.labelled(str(path), 20, 20)
    path = written(tmp_path, "jsonl", text=TEXTS, label=["a"] * 40)
    with pytest.raises(InputError, match="at least two classes"):
        datasets.labelled(str(path), 20, 20)


def test_an_encoder_is_measured_on_own_data(tmp_path):
    model = write_model(tmp_path / "model")
    scores = [float(n % 7) for n in range(39)]
    pairs = written(tmp_path, "csv", text1=TEXTS[:-1], text2=TEXTS[1:], score=scores)
    classes = written(tmp_path, "tsv", text=TEXTS, label=["a", "b"] * 20)
    values = {"texts": "news", "sentences": 20, "similarity": (str(pairs),), "passages": 20}
    values |= {
        "retrieval": (str(write_beir(tmp_path / "mine")),),
        "classification": (str(classes),),
    }
    spec = Evaluation(**values)
    assert common.text_digest(spec)
    inputs = encoder_inputs.gather(str(model), spec)
    assert inputs.names("queries") == ["mine"] and str(tmp_path) not in encoder_inputs.about(inputs)
    generator, folders = np.random.default_rng(0), [tmp_path / name for name in ("a", "b")]
    rows = generator.normal(size=(len(inputs.all), 16)).astype(np.float32)
    for folder, noise in zip(folders, (0, 0.3), strict=True):
        folder.mkdir()
        np.save(folder / "outputs.npy", rows + noise * generator.normal(size=rows.shape))
    metrics, _ = encoder.compare(Comparison(tmp_path, "", "", spec, *folders), inputs)
    own = {row["name"]: row for row in metrics if row.get("domain") == "rows.csv"}
    assert own.keys() >= {"human_spearman", "human_spearman_loss"}
    assert {row["domain"] for row in metrics if "ndcg" in row["name"]} == {"mine"}
    assert {row["domain"] for row in metrics if "probe" in row["name"]} == {"rows.tsv"}
    bundled = [row for row in metrics if row["name"] == "human_spearman" and not row.get("domain")]
    assert len(bundled) == 1
    draws = BootstrapMetrics(common.read_items(tmp_path)).of("human_spearman_loss", "rows.csv")
    assert draws.value == pytest.approx(own["human_spearman_loss"]["value"], abs=1e-6)
    assert draws.interval() == pytest.approx(
        (own["human_spearman_loss"]["low"], own["human_spearman_loss"]["high"]), abs=1e-5
    )


def test_a_report_names_files_without_their_folders(tmp_path):
    path = written(tmp_path, "csv", text=TEXTS)
    parameters = {"evaluation": {"texts": [f"{path}::text@news", "wiki"]}}
    text = f"texts = ['{path}::text@news'], read {path}"
    assert own_files.hidden(text, parameters) == "texts = ['rows.csv::text'], read rows.csv"


def experiment_on(folder: Path, **evaluation) -> Path:
    """An experiment with a tiny encoder that calibrates on `news` and is measured on own data too."""
    values = {"sentences": 20, "passages": 20, "queries": 20, "labelled": 20, "retrieval": ["docs"]}
    content = {
        "model": str(write_model(folder / "model")),
        "calibration": {"texts": "news", "samples": 32},
        "evaluation": {"texts": ["everyday"], **values, **evaluation},
        "candidates": {"int8": [{"quantize": {"method": "rtn", "bits": 8}}]},
        "criteria": ["encoder"],
    }
    path = folder / "mine.yaml"
    path.write_text(json.dumps(content))
    return path


def test_check_says_what_it_read_and_what_the_run_will_take(tmp_path, capsys):
    pairs = written(tmp_path, "csv", text1=TEXTS[:-1], text2=TEXTS[1:], score=list(range(39)))
    drawn = np.random.default_rng(0).integers(10**6, size=(40, 3, 5))
    mixed = ["\n".join(f"Первая line {' '.join(map(str, row))}." for row in text) for text in drawn]
    texts = written(tmp_path, "jsonl", body=[*mixed, "", mixed[0]])
    path = experiment_on(
        tmp_path,
        texts=["everyday", f"{texts}::body"],
        retrieval=[str(write_beir(tmp_path / "beir"))],
        similarity=[str(pairs)],
    )
    assert main(["check", str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for line in (
        "calibration: news: 300 documents, script Latin",
        "evaluation: rows.jsonl::body: 42 rows of column body, 1 empty and 1 duplicate ones left out: "
        "40 documents, script Cyrillic and Latin, family own, which calibration did not see",
        "retrieval: beir: 20 queries, 100 passages, 40 judgements, script Latin, family own, which "
        "calibration did not see (drawn from 30 judged queries on 100 passages, test)",
        "similarity: rows.csv: 39 pairs of 40 texts",
        "classification: bbc: 40 texts",
        "evaluation texts are cut at 256 tokens",
        "a run takes about",
    ):
        assert line in said
    assert str(tmp_path) not in said.partition("ready to run into")[2].partition("\n")[2]


def test_the_measurement_is_made_once(tmp_path, monkeypatch):
    checked = read(str(experiment_on(tmp_path)))
    description = plan.check(checked, tmp_path)
    first, seen = estimate.estimate(checked, description)
    monkeypatch.setattr(pilot, "_measure", None)
    assert estimate.estimate(checked, description) == (first, seen)
    assert first.seconds > 3 * seen["process"] and first.memory > seen["memory"] > 1e8


SEEN = {
    "import": 2.0,
    "process": 10.0,
    "load": 1.0,
    "inference": 100.0,
    "everything": 1.5,
    "statistics": 5.0,
    "batch": 0.5,
    "memory": 1e9,
    "outputs": 1e6,
    "tokens": 1000,
    "forward": 1.0,
    "flops": 1e9,
    "layers": [[100, 1000], [100, 1000]],
    "inputs": [1000],
    "restored": 0.0,
    "cut": [],
}


def test_an_estimate_counts_every_stage(tmp_path, monkeypatch):
    path = experiment_on(tmp_path)
    monkeypatch.setattr(estimate, "measured", lambda *_: SEEN)
    of = {}
    for name, chain, draws in (
        ("rtn", [{"quantize": {"method": "rtn", "bits": 8}}], 1),
        ("gptq", [{"quantize": {"method": "gptq", "bits": 4}}], 1),
        ("twice", [{"quantize": {"method": "rtn", "bits": 8}}], 2),
        (
            "learned",
            [{"quantize": {"method": "rtn", "bits": 8}}, {"reconstruct": {"minutes": 1.0}}],
            1,
        ),
    ):
        content = json.loads(path.read_text())
        content["candidates"] = {"one": chain}
        content["calibration"]["draws"] = draws
        path.write_text(json.dumps(content))
        of[name] = estimate.estimate(read(str(path)), {"kind": "encoder", "bytes": 4e6})[0]
    compared = (
        2 + 10 + 7 * 2 + 100 + 5
    )  # notebook, process, loads of packed weights, inference, ...
    step = 2 + 2 + 4 * 2e8 / 1e9  # notebook, two models opened, products with the weights
    shared = 6 + 2 + 1 + 1e9 / 1e9 + (2 + 10 + 150 + 5) + (2 + 10 + 100 + 5)
    assert of["rtn"].seconds == pytest.approx(shared + step + compared)
    # Two passes; three times T c^2 and c^3; 16 instead of 4 products r c^2 for each of two layers.
    assert of["gptq"].seconds - of["rtn"].seconds == pytest.approx(2 + 3 * 1 + 3 * 1 + 12 * 0.2)
    assert of["twice"].seconds == pytest.approx(shared + 2 * (step + compared))
    assert of["learned"].seconds == pytest.approx(of["rtn"].seconds + 2 + 2 + 60)
    assert of["rtn"].memory == 1e9 + 4e6 + 16e6


def test_scripts_are_named_by_their_letters():
    assert data_summary.scripts(["Hello", "Привет, мир", "1"]) == "script Cyrillic and Latin"
    assert data_summary.scripts(["12 %"]) == "no letters"


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    both = [str(written(tmp_path / folder, "jsonl", text=TEXTS)) for folder in ("a", "b")]
    path = experiment_on(tmp_path, texts=both)
    with pytest.raises(InputError, match="rows.jsonl stands there twice"):
        plan.check(read(str(path)), tmp_path)


def test_a_quotation_mark_in_a_tsv_is_text(tmp_path):
    path = tmp_path / "rows.tsv"
    lines = ["sentence1\tsentence2\tscore", '"Hello, he said\tHi\t3', "a\tb\t1", '"c\td\t2']
    path.write_text("\n".join(lines))
    texts, left, right, scores = own_ratings.rated(str(path))
    assert len(scores) == 3 and texts[left[0]] == '"Hello, he said'


def test_columns_that_could_be_others_are_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,text,category\n" + "\n".join(f"{n},text {n},c{n % 2}" for n in range(9)))
    with pytest.raises(InputError, match="text and label; it has id, text and category"):
        own_ratings.classes(str(path))


def test_a_large_table_of_pairs_is_sampled(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        "text1,text2,score\n" + "\n".join(f"left {n},right {n},{n % 5}" for n in range(3000))
    )
    assert len(own_ratings.rated(str(path))[3]) == own_ratings.MOST


def test_judgements_without_a_header_line_are_refused(tmp_path):
    folder = write_beir(tmp_path / "beir")
    file = folder / "qrels" / "test.tsv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(InputError, match="under a header line"):
        beir.read("evaluation.retrieval", folder)


def test_queries_that_share_a_passage_are_one_unit():
    relevant = [{0: 1.0, 1: 1.0}, {0: 1.0, 2: 1.0}, *({n: 1.0} for n in range(3, 9))]
    units = beir._connected(relevant)
    assert units[0] == units[1] and len({*units.tolist()}) == 7
    assert len({*beir._connected(relevant[:2]).tolist()}) == 2  # all are connected
