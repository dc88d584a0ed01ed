"""Folders that are whole or not there: written aside, replaced, damaged, and left by who was killed."""

import os

import pytest

from pcmanet import files
from pcmanet.files import DamagedFolderError, recover, remove_folder, verify, write_manifest, written_aside


class Killed(BaseException):
    """Stands for a kill at a moment that a test picks."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(target, text):
    with written_aside(target) as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "weights").write_text(text)
        write_manifest(aside)


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    for text in ("old", "new"):
        write(tmp_path / "best", text)
        assert names(tmp_path) == ["best"]
        assert (tmp_path / "best" / "inner" / "weights").read_text() == text
        verify(tmp_path / "best")


def test_an_error_leaves_the_folder_before_and_nothing_else(tmp_path):
    write(tmp_path / "best", "old")
    with pytest.raises(OSError, match="no space"), written_aside(tmp_path / "best") as aside:
        (aside / "weights").write_text("half")
        raise OSError("no space")
    assert names(tmp_path) == ["best"]
    assert (tmp_path / "best" / "inner" / "weights").read_text() == "old"


@pytest.mark.parametrize("call", [0, 1])
def test_a_kill_between_the_renames_is_mended(call, tmp_path, monkeypatch):
    write(tmp_path / "best", "old")
    renames = []

    def dying(self, target):
        if len(renames) == call:
            raise Killed
        renames.append(target)
        os.rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "rename", dying)
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies up nothing
        aside = tmp_path / ".writing-best"
        aside.mkdir()
        with pytest.raises(Killed):
            files.finish_aside(aside, tmp_path / "best")
    recover(tmp_path)
    assert names(tmp_path) == ["best"]
    assert (tmp_path / "best" / "inner" / "weights").read_text() == "old"


def test_recovery_removes_what_is_half_written_half_replaced_or_half_removed(tmp_path):
    write(tmp_path / "best", "new")
    for left in (".writing-last", ".removing-step", ".replaced-best"):
        (tmp_path / left / "inner").mkdir(parents=True)
    recover(tmp_path)
    assert names(tmp_path) == ["best"]


def test_removal_is_a_rename_first(tmp_path):
    write(tmp_path / "step", "old")
    remove_folder(tmp_path / "step")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "weights cannot be read"),
        (lambda path: os.truncate(path, 2), "weights has 2 bytes instead of 5"),
        (lambda path: path.write_text("wordz"), "weights does not hold what was written"),
        (lambda path: (path.parent.parent / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda path: (path.parent.parent / "manifest.json").unlink(), "manifest.json cannot be read"),
    ],
)
def test_damage_is_found_and_named(damage, message, tmp_path):
    write(tmp_path / "step", "words")
    damage(tmp_path / "step" / "inner" / "weights")
    with pytest.raises(DamagedFolderError, match=message):
        verify(tmp_path / "step")
