"""Bad input at the command line, by kind: one printable line on standard error with the path of the value, exit code 2, soon."""

import json
import os
import time

import pytest
from support.small import write_causal, write_model, write_reranker

from kerf.core.errors import LINE
from kerf.models import registry
from kerf.workbench.cli import main

CANDIDATES = "candidates: {a: [{quantize: {bits: 4}}]}"
HEAD = f"model: minilm\n{CANDIDATES}\n"
LONG = "x" * 5000
BOMB = "a0: &a0 [x]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)
)
STEP = "[{quantize: {}}]"
WHOLE = "a whole number from 1 to 1000000"


@pytest.fixture(scope="module", autouse=True)
def described():
    """The bundled model is described once, as in any environment that was used before: a refusal is timed."""
    registry.describe("minilm")


@pytest.fixture
def refused(tmp_path, capsys):
    """Run a command and return the one line that refuses it."""

    def run(*arguments, text=HEAD, name="mine.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        clock = time.process_time()
        code = main(
            [
                str(path) if each == path.parent else each
                for each in (arguments or ("check", path.parent))
            ]
        )
        error = capsys.readouterr().err
        assert (
            code == 2
            and error.endswith("\n")
            and error[:-1].isprintable()
            and len(error) <= LINE + 10
        ), error
        assert time.process_time() - clock < 5
        return error

    return run


SECTIONS = [
    ("calibration: 0", "calibration = 0: keys and values"),
    ("calibration: false", "calibration = False: keys and values"),
    ("evaluation: []", "evaluation = []: keys and values"),
    ("resources: ''", "resources = '': keys and values"),
    ("resources:", "resources = None: keys and values"),
    ("release: [[]]", "release.1 = []"),
    ("release: [a, a]", "release.2 = 'a': each candidate once"),
    ("release:", "release = None: a list of candidates"),
    ("criteria: [[]]", "criteria = [[]]: a list of names"),
    ("criteria: [encoder, encoder]", "encoder stands there twice"),
    ("criteria: ''", "criteria = '': a JSON file or a known name"),
    ("criteria: [../criteria/encoder]", "a JSON file or a known name"),
    (f"criteria: {LONG}.json", "a JSON file or a known name"),
    ("calibration: {texts: ''}", "calibration.texts = ''"),
    ("calibration: {texts: ~nosuchuser/x}", "calibration.texts = '~nosuchuser/x'"),
    (f"evaluation: {{texts: {'x' * 300}}}", "evaluation.texts = 'xxx"),
    (f"evaluation: {{texts: {LONG}}}", "evaluation.texts = 'xxx"),
    ('evaluation: {texts: "a\\0b"}', r"evaluation.texts = 'a\x00b'"),
    ('calibration: {texts: "\\ud800"}', r"calibration.texts = '\ud800'"),
    ('calibration: {texts: "\\e[31m"}', r"calibration.texts = '\x1b[31m'"),
    ("calibration: {texts: /dev/zero}", "calibration.texts = '/dev/zero'"),
    ('"\\e[31m": 1', r"\x1b[31m = 1: no such key"),
    ("3: 1", "3 = 1: no such key"),
    ("calibration: {3: 4}", "calibration.3 = 4: no such key"),
    ("[1]: 2", "keys that are names (line 3, column 1)"),
]
NUMBERS = [
    *[
        (f"calibration: {{samples: {value}}}", f"calibration.samples = {shown}: {WHOLE}")
        for value, shown in (
            ("true", "True"),
            ("1:30", "'1:30'"),
            ("020", "'020'"),
            ("0x1F", "'0x1F'"),
            ("1_000", "'1_000'"),
            ("2020-99-99", "'2020-99-99'"),
            ("2.0", "2.0"),
            ("1e999", "inf"),
            (".nan", "nan"),
            (10**30, 10**30),
            (10**6 + 1, 10**6 + 1),
            ("[[[[[1]]]]]", "[[[[...]]]]"),
            ("{}", "{}"),
            ("", "None"),
        )
    ],
    ("calibration: {samples: " + "9" * 5000 + "}", "calibration.samples = '999"),
    *[
        (f"{section}: {{{key}: {10**30}}}", f"{section}.{key} = {10**30}: ")
        for section, keys in (
            ("calibration", ("seed", "max_length")),
            ("evaluation", ("sentences", "passages", "num_chunks", "seq_len", "restored")),
            ("resources", ("rounds", "threads", "memory_limit")),
        )
        for key in keys
    ],
    ("resources: {memory_limit: .inf}", "resources.memory_limit = inf"),
    ("resources: {memory_limit: true}", "resources.memory_limit = True"),
]
TEXT = [
    ("calibration: {samples: !!int foo}", "calibration.samples = '!!int': no tags in YAML"),
    (
        "calibration: {samples: !!python/name:os.system }",
        "calibration.samples = '!!python/name:os.system': no tags",
    ),
    ("calibration: {texts: !!binary aGk=}", "calibration.texts = '!!binary': no tags"),
    ("model: other", "model = 'other': each key once; line 1 has it already (line 3, column 1)"),
    ("evaluation: {sentences: 30, sentences: 40}", "evaluation.sentences = 40: each key once"),
    ("evaluation: &e {texts: news}\ncalibration: {<<: *e, <<: *e}", "calibration.<<"),
    ("calibration: {<<: 3}", "calibration.<< = 3: a mapping"),
    ("calibration: *nothing", "line 3, column 14: no valid YAML (found undefined alias 'nothing')"),
    ("calibration: &a {samples: *a}", "at most 32 lists and mappings in one another"),
    (
        "calibration: " + "[" * 3000,
        "at most 32 lists and mappings in one another (line 3, column 46)",
    ),
    ("calibration: " + "{a: " * 3000, "at most 32 lists and mappings"),
    (
        "calibration: &a " + "[" * 20 + "]" * 20 + "\nevaluation: " + "[" * 20 + "*a" + "]" * 20,
        "at most 32 lists and mappings",
    ),
    (BOMB, "at most 10000 values in all"),
    ("x: [" + "1," * 20_000 + "]", "at most 10000 values in all"),
    ("#" * 70_000, "a file of at most 65536 bytes"),
    ("---\nmodel: minilm", "line 3, column 1: no valid YAML (but found another document)"),
    ("a: \x1b", "no valid YAML (unacceptable character #x001b"),
]


@pytest.mark.parametrize(("text", "said"), SECTIONS + NUMBERS + TEXT, ids=lambda each: each[:40])
def test_a_wrong_value_in_a_file_is_refused_with_its_path(refused, text, said):
    assert said in refused(text=HEAD + text)


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        *[
            (value, f"candidates = {shown}: name: [steps]")
            for value, shown in (("null", None), ("{}", {}), ("[]", []), ("3", 3), ("''", "''"))
        ],
        *[
            (f"{{a: {value}}}", f"candidates.a = {shown}: a list of steps")
            for value, shown in (("null", None), ("{}", {}), ("[]", []), ("''", "''"))
        ],
        *[
            (f"{{a: [{value}]}}", f"a.1 = {shown}: one kind of step")
            for value, shown in (("[]", []), ("3", 3), ("{}", {}), ("null", None))
        ],
        *[
            (f"{{a: [{{quantize: {value}}}]}}", f"a.1 = {shown}: keys and values")
            for value, shown in (("[]", []), ("''", "''"), ("0", 0), ("false", False))
        ],
        *[
            (f"{{a: [{{quantize: {{method: {value}}}}}]}}", f"a.1.method = {shown}: rtn")
            for value, shown in (("[]", []), ("{}", {}), ("null", None), ("''", "''"))
        ],
        *[
            (f"{{{name}: {STEP}}}", "candidates = ")
            for name in (
                "index.html",
                "results.json",
                "gates.xml",
                "release.md",
                "report.pdf",
                "history",
                "baseline",
                "history.",
                "index.html.",
                "results.json.12.part",
                "Index.html",
                "8",
                "null",
                "true",
                "..",
                "a/b",
                "x" * 65,
                '"a\\e[3m"',
                "''",
            )
        ],
        ("{a: [{prune: {method: []}}]}", "a.1.method = []: magnitude"),
        ("{a: [{prune: {sparsity: true}}]}", "a.1.sparsity = True: a share"),
        ("{a: [{prune: {sparsity: .nan}}]}", "a.1.sparsity = nan: a share"),
        (
            "{a: [{prune: {method: magnitude, sweeps: 3}}]}",
            "a.1.sweeps = 3: no key of method magnitude; wanda and sparsegpt have it",
        ),
        (
            "{a: [{quantize: {act_order: false}}]}",
            "a.1.act_order = False: no key of method rtn; gptq and gptqmodel have it",
        ),
        ("{a: [{quantize: {symmetric: yes}}]}", "a.1.symmetric = 'yes': true or false"),
        ("{a: [{quantize: {bits: mixed, min_cosine: true}}]}", "a.1.min_cosine = True"),
        (
            "{a: [{quantize: {bits: mixed, budget_bytes: 1" + "0" * 30 + "}}]}",
            "a.1.budget_bytes = 1",
        ),
        ("{a: [{quantize: {group_size: 1" + "0" * 30 + "}}]}", "a.1.group_size = 1"),
        ("{a: [{quantize: {}}, {reconstruct: {steps: 1" + "0" * 30 + "}}]}", "a.2.steps = 1"),
        ("{a: [{quantize: {}}, {reconstruct: {minutes: true}}]}", "a.2.minutes = True"),
        ("{a: [{quantize: {method: checkpoint, checkpoint: '', bits: 4}}]}", "a.1.checkpoint = ''"),
        (
            "{a: [{quantize: {bits: 4, bits: 3}}]}",
            "candidates.a.1.quantize.bits = 3: each key once; line 2 has it already (line 2, column 39)",
        ),
        (f"{{a: {STEP}, a: {STEP}}}", "candidates.a = [{'quantize': {}}]: each key once"),
        (f"{{{', '.join(f'c{n}: {STEP}' for n in range(201))}}}", "at most 200"),
        (f"{{a: [{', '.join(['{quantize: {}}'] * 21)}]}}", "at most 20"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_wrong_candidates_are_refused_with_their_path(refused, candidates, said):
    assert said in refused(text=f"model: minilm\ncandidates: {candidates}\n")


@pytest.mark.parametrize(
    "model",
    [
        "''",
        "' '",
        "3",
        "null",
        "[]",
        "true",
        "~nosuchuser/x",
        LONG,
        '"a\\0b"',
        '"\\e[31m"',
        '"\\ud800"',
        "/dev/null",
    ],
    ids=lambda each: each[:20],
)
def test_what_is_no_model_is_refused(refused, model):
    assert refused(text=f"model: {model}\n{CANDIDATES}\n").startswith("kerf: model = ")


@pytest.mark.parametrize(
    "model",
    ["", " ", "~nosuchuser/x", LONG, "a\0b", "\x1b[31m", "\udcff"],
    ids=lambda each: ascii(each)[:24],
)
def test_what_is_no_model_is_refused_of_the_command_line_too(refused, tmp_path, model):
    assert refused("check", tmp_path, "--model", model).startswith("kerf: model = ")


@pytest.mark.parametrize(
    "name",
    ["history.yaml", "index.html.yaml", "baseline.yaml", "Mine.yaml", "a b.yaml", "\x1b.yaml"],
    ids=lambda each: ascii(each)[:24],
)
def test_a_file_that_would_take_a_folder_of_the_reports_is_refused(refused, name):
    assert "EXPERIMENT = " in refused(name=name)


@pytest.mark.parametrize("text", [b"\xff\xfea", b"", b"3", b"\0", b"a: \xed\xa0\x80"])
def test_a_file_that_is_no_experiment_is_refused(refused, text):
    assert "mine.yaml" in refused(text=text)


@pytest.mark.parametrize(
    "experiment",
    [
        "",
        " ",
        "~nosuchuser/x",
        LONG,
        "a\0b",
        "\x1b[31m",
        "\udcff",
        "/dev/zero",
        "/tmp",
        "fifo",
        "../experiments/minilm",
    ],
    ids=lambda each: ascii(each)[:24],
)
def test_what_is_no_file_is_no_experiment(refused, tmp_path, experiment):
    if experiment == "fifo":
        os.mkfifo(tmp_path / "fifo")
        experiment = str(tmp_path / "fifo")
    assert refused("check", experiment).startswith("kerf: EXPERIMENT = ")


@pytest.mark.parametrize(
    "out",
    ["", " ", "~nosuchuser/x", LONG, "/" + "x" * 300 + "/y", "a\0b", "\x1b[31m", "\udcff"],
    ids=lambda each: ascii(each)[:24],
)
@pytest.mark.parametrize(
    "command",
    [("check",), ("report", "x"), ("ab", "a/b", "c/d"), ("list", "runs")],
    ids=lambda each: each[0],
)
def test_what_is_no_directory_is_no_place_for_reports(refused, tmp_path, command, out):
    arguments = ("check", tmp_path) if command == ("check",) else command
    assert refused(*arguments, "--out", out).startswith("kerf: --out = ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("calibration.samples=" + "[" * 3000, "at most 32 lists"),
        ("calibration.samples=" + "9" * 5000, f": {WHOLE}"),
        ("calibration.samples=020", "'020'"),
        ("a.bits=!!int foo", "a.bits = '!!int': no tags"),
        ("a.bits=[", "a.1.bits = '['"),
        ("a.bits=*x", "a.1.bits = '*x'"),
        ("a.bits=true", "a.1.bits = True"),
        ("calibration.samples={a: 1, a: 2}", "calibration.samples.a = 2: each key once"),
        ("calibration=", "calibration = None"),
        ("model=", "model = None"),
        ("a.99999999999999999999.bits=3", "-p = 'a.9999"),
        ("a.\N{SUPERSCRIPT TWO}.bits=3", "-p = 'a."),
        (f"{LONG}=3", "-p = 'xxx"),
        ("\x1b[31m=3", r"-p = '\x1b[31m'"),
        ("calibration.texts=\x1b[31m", r"calibration.texts = '\x1b[31m'"),
        ("calibration.samples=\udcff", r"'\udcff'"),
        ("evaluation={seq_len: 512}", "evaluation.seq_len = 512"),
    ],
    ids=lambda each: ascii(each[:30]),
)
def test_a_wrong_override_is_refused(refused, tmp_path, override, said):
    assert said in refused("check", tmp_path, "-p", override)


def test_what_is_set_twice_is_refused(refused, tmp_path):
    assert "a.1.bits is set already" in refused(
        "check", tmp_path, "-p", "a.bits=3", "-p", "a.1.bits=4"
    )
    assert "--model = 'minilm'" in refused(
        "check", tmp_path, "-p", "model=minilm", "--model", "minilm"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("", "x"),
        ("~nosuchuser/x", "y"),
        (LONG, "y"),
        ("a\0", "y"),
        ("x", ""),
        ("x", LONG),
        ("x", "\x1b"),
    ],
    ids=lambda each: ascii(each)[:24],
)
def test_what_is_no_path_is_not_exported(refused, arguments):
    assert refused("export", *arguments).startswith(
        "kerf: CANDIDATE = " if arguments[0] != "x" else "kerf: FOLDER = "
    )


def test_an_argument_that_argparse_refuses_reaches_no_terminal_raw(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", "minilm", "--\x1b[31m"])
    assert ended.value.code == 2 and "\x1b" not in capsys.readouterr().err


GATE = {"metric": "cosine_mean", "op": ">=", "threshold": 0.9}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", '{"schema": 1'),
        ("3", '{"schema": 1'),
        ('{"schema": true, "gates": []}', '{"schema": 1'),
        ('{"schema": 1}', '{"schema": 1'),
        ("", "valid JSON"),
        ('{"schema": 1, "schema": 1, "gates": []}', "the key schema stands twice"),
        ('{"schema": 1, "gates": [], "gats": 3}', "mine.gats = 3"),
        ("[" * 100_000, "valid JSON"),
        ('{"schema": ' + "9" * 5000 + "}", "valid JSON"),
        ('{"schema": 1, "gates": [{"threshold": NaN}]}', "NaN is no number"),
        (
            '{"schema": 1, "gates": [{"threshold": 1, "threshold": 2}]}',
            "the key threshold stands twice",
        ),
        ("\udcff", "a UTF-8 text file"),
        ("x" * 2**21, "a file of at most"),
        *[
            (json.dumps({"schema": 1, "gates": [gate]}), f"mine.gates.0{path} = ")
            for gate, path in (
                (3, ""),
                ("metric", ""),
                ([], ""),
                ({**GATE, "metric": []}, ".metric"),
                ({**GATE, "metric": 3}, ".metric"),
                ({**GATE, "op": []}, ".op"),
                ({**GATE, "threshold": True}, ".threshold"),
                ({**GATE, "threshold": 10**400}, ".threshold"),
                ({**GATE, "threshold": "1"}, ".threshold"),
                ({**GATE, "source": 3}, ".source"),
                ({**GATE, "applies_to": []}, ".applies_to"),
                ({**GATE, "applies_to": {"candidate": 3}}, ".applies_to.candidate"),
                ({**GATE, "applies_to": {"bits": True}}, ".applies_to.bits"),
                ({**GATE, "applies_to": {"bits": 9}}, ".applies_to.bits"),
                ({**GATE, "applies_to": {"bit": 4}}, ".applies_to.bit"),
                ({**GATE, "applies_to": {"method": ["rtn"]}}, ".applies_to.method"),
                ({**GATE, "\x1b": 3}, r".\x1b"),
            )
        ],
        (
            '{"schema": 1, "gates": [{"metric": "cosine_mean", "op": ">=", "threshold": 1e999}]}',
            "mine.gates.0.threshold = inf",
        ),
    ],
    ids=lambda each: ascii(each[:50]),
)
def test_wrong_criteria_are_refused_with_their_path(refused, tmp_path, content, said):
    (tmp_path / "mine.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert said in refused("check", tmp_path, "-p", f"criteria={tmp_path / 'mine.json'}")


@pytest.mark.parametrize(
    ("write", "wrong", "right"),
    [
        (
            write_model,
            ("num_chunks: 4", "seq_len: 64", "restored: 1", "items: 20"),
            "sentences: 30, passages: 30",
        ),
        (
            write_causal,
            ("sentences: 30", "queries: 30", "labelled: 40"),
            "num_chunks: 4, seq_len: 64, passages: 4, restored: 0",
        ),
        (
            write_reranker,
            ("sentences: 30", "num_chunks: 4", "passages: 30", "restored: 1"),
            "retrieval: [news, docs], queries: 30",
        ),
    ],
    ids=["encoder", "causal", "reranker"],
)
def test_a_key_of_another_kind_of_model_is_refused(refused, tmp_path, capsys, write, wrong, right):
    head = f"model: {write(tmp_path / 'model')}\n{CANDIDATES}\ncalibration: {{samples: 16, max_length: 64}}\nevaluation: "
    for each in wrong:
        key, value = each.split(": ")
        assert f"evaluation.{key} = {value}: no key of a" in refused(text=f"{head}{{{each}}}")
        assert f"evaluation.{key} = {value}: no key of a" in refused(
            "check", tmp_path, "-p", f"evaluation.{key}={value}", text=f"{head}{{{right}}}"
        )
    (tmp_path / "mine.yaml").write_text(f"{head}{{{right}}}")
    assert main(["check", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert "ready to run" in capsys.readouterr().out
