"""What a hostile model directory can try: nothing of it runs, nothing hangs, and the answer is a model or one line.

Every attack that brings code would leave a file behind, the canary. Each is tried on an encoder, a causal language model
and a reranker, with a `y` waiting on standard input for whatever might ask.
"""

import io
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from support.attacks import ATTACKS, CODE, FAMILIES, IGNORED, OPENED, put, special

import kerf
from kerf.core.errors import InputError
from kerf.models import families, registry
from kerf.models.safety import check_folder

pytestmark = pytest.mark.timeout(60)  # seconds; an attack that hangs is one that succeeded


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound model of each family."""
    folder = tmp_path_factory.mktemp("sound")
    return {family: write(folder / family) for family, (write, _) in FAMILIES.items()}


@pytest.fixture
def hostile(sound, tmp_path, monkeypatch):
    """Copies of them to attack; what would run leaves the canary."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "evil.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("KERF_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))

    def attacked(family, attack):
        folder = shutil.copytree(sound[family], tmp_path / "model")
        (folder / "evil.py").write_text(CODE)
        attack(folder)
        return folder

    return attacked


def opened(folder):
    """What a run opens of a model: itself and its tokenizer."""
    found = registry.open_model(str(folder))
    families.of(folder).reader(found)
    return found


def unharmed(started):
    """Nothing ran, nothing was asked for, and it did not take long."""
    assert not Path(os.environ["CANARY"]).exists(), "code of the model ran"
    assert sys.stdin.tell() == 0, "standard input was read"
    assert time.perf_counter() - started < 30, (
        "no answer within seconds, which a busy machine takes too"
    )


@pytest.mark.parametrize(
    ("family", "attack"), [(family, name) for family, tried in ATTACKS.items() for name in tried]
)
def test_an_attack_neither_runs_nor_hangs(hostile, family, attack):
    expected = ATTACKS[family][attack]
    folder = hostile(family, expected[0] if expected else OPENED[attack])
    started = time.perf_counter()
    if expected:
        with pytest.raises(InputError, match=expected[1]) as caught:
            opened(folder)
        assert str(caught.value).startswith(f"model = {str(folder)!r}: ") and "\n" not in str(
            caught.value
        )
    else:
        opened(folder)
        ignored = check_folder(str(folder), folder)
        assert "evil.py (a file)" in ignored and (len(ignored) > 1) == (attack in IGNORED)
    unharmed(started)


def test_there_are_forty_attacks_on_each_family():
    assert all(len(tried) >= 40 for tried in ATTACKS.values())


def test_what_is_not_run_is_described(hostile):
    folder = hostile("causal", IGNORED["auto_map of the model"])
    assert registry.describe(str(folder))["ignored_code"] == [
        "evil.Evil (config.json)",
        "evil.py (a file)",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_snapshot_of_the_hub_opens_by_its_path(sound, tmp_path, family):
    snapshot, blobs = (
        tmp_path / "models--org--name" / "snapshots" / ("0" * 40),
        tmp_path / "models--org--name" / "blobs",
    )
    blobs.mkdir(parents=True)
    for number, path in enumerate(
        path for path in sorted(sound[family].rglob("*")) if path.is_file()
    ):
        link = snapshot / path.relative_to(sound[family])
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blobs / f"{number:064}")
        link.symlink_to(os.path.relpath(blobs / f"{number:064}", link.parent))
    opened(snapshot)
    (snapshot / "secret.txt").symlink_to("../../refs/main")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("0" * 40)
    with pytest.raises(InputError, match="secret.txt is a link that leaves it"):
        registry.resolve(str(snapshot))


def test_blobs_that_are_a_link_are_no_blobs(sound, tmp_path):
    snapshot = shutil.copytree(sound["causal"], tmp_path / "models--org--name" / "snapshots" / "1")
    (tmp_path / "models--org--name" / "blobs").symlink_to("/etc")
    (snapshot / "notes.txt").symlink_to("../../blobs/hostname")
    with pytest.raises(InputError, match="notes.txt is a link that leaves it"):
        registry.resolve(str(snapshot))


def test_links_inside_a_directory_are_fine(hostile):
    def attack(folder):
        (folder / "weights").mkdir()
        (folder / "model.safetensors").rename(folder / "weights" / "1.safetensors")
        (folder / "model.safetensors").symlink_to("weights/1.safetensors")
        (folder / "again").symlink_to(".")

    opened(hostile("causal", attack))


def test_a_tree_that_is_no_model_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "pipe.json")
    with pytest.raises(InputError, match="no model"):
        registry.resolve(str(tmp_path / "tree"))
    (tmp_path / "tree" / "config.json").write_text("{}")
    monkeypatch.setattr("kerf.models.safety.tree.ENTRIES", 50)
    for number in range(60):
        (tmp_path / "tree" / f"{number}.txt").touch()
    with pytest.raises(InputError, match="at most 50 files and folders|is a pipe"):
        registry.resolve(str(tmp_path / "tree"))


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 5000, "a\0b", "", " "])
def test_a_name_that_no_directory_can_have_is_refused(name):
    with pytest.raises(InputError, match="^model = "):
        registry.resolve(name)


def test_names_of_a_directory_reach_no_terminal_raw(hostile):
    folder = hostile(
        "causal",
        put("config.json", model_type="evil", auto_map={"AutoModel": "\x1b[2Jevil\n" + "x" * 500}),
    )
    with pytest.raises(InputError, match="would run") as caught:
        registry.resolve(str(folder))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400 + len(str(folder))


def test_a_candidate_is_held_against_the_same(hostile):
    folder = hostile("causal", special("card.json", os.mkfifo))
    with pytest.raises(InputError, match="card.json is a pipe"):
        kerf.load(folder)


def test_only_one_function_opens_what_lies_in_a_directory():
    calls = re.compile(
        r"from_pretrained\(|\b(SentenceTransformer|CrossEncoder)\((?!modules=)|torch\.load\(|pickle\.load|allow_pickle=True|trust_remote_code"
    )
    found = [
        path
        for path in Path(kerf.__file__).parent.rglob("*.py")
        if calls.search(re.sub(r'(?s)""".*?"""', "", path.read_text()))
    ]
    assert [path.name for path in found] == ["opening.py"]
