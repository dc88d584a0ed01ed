"""Tests of files and folders that are complete or absent: replaced, damaged, interrupted, and created with other settings."""

import errno
import os
import posix
import stat
from contextlib import nullcontext

import pytest

from pcmanet import files
from pcmanet.files import (
    TEMPORARY,
    atomic_file,
    atomic_folder,
    check_settings,
    find_recipe,
    keep_settings,
    naming_disk_errors,
    recover,
    remove_folder,
    replace_folder,
    synchronize,
    temporary_folder,
    verify,
    write_manifest,
    write_text,
)


class Killed(BaseException):
    """A kill at a time that a test chooses."""


@pytest.fixture(autouse=True)
def waits_for_the_disk(monkeypatch):
    """Wait for the disk, unlike the other tests, see conftest.py."""
    monkeypatch.setattr(os, "fsync", posix.fsync)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_folder(path, text):
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_text(text)
        write_manifest(folder)


@pytest.mark.parametrize("durable", [True, False])
def test_file_replaces_the_earlier_one(durable, tmp_path):
    for text in ("old", "new"):
        with atomic_file(tmp_path / "results.json", durable=durable) as temporary:
            assert temporary.parent == tmp_path and temporary.suffix == ".json"
            temporary.write_text(text)
        assert names(tmp_path) == ["results.json"]
        assert (tmp_path / "results.json").read_text() == text


def test_content_is_on_the_disk_before_its_name_and_then_the_name(tmp_path, monkeypatch):
    waits = []

    def record(path):
        waits.append((path.name, sorted(path.name for path in tmp_path.glob("[!.]*"))))
        synchronize(path)

    monkeypatch.setattr(files, "synchronize", record)
    with atomic_file(tmp_path / "results.json") as temporary:
        temporary.write_text("new")
    assert waits == [(temporary.name, []), (tmp_path.name, ["results.json"])]
    waits.clear()
    write_folder(tmp_path / "best", "new")
    *before, after = waits
    assert {name for name, _ in before} == {"best", "inner", "weights", "manifest.json"}
    assert all(shown == ["results.json"] for _, shown in before)
    assert after == (tmp_path.name, ["best", "results.json"])
    waits.clear()
    with atomic_file(tmp_path / "quick", durable=False) as temporary:
        temporary.write_text("new")
    assert waits == []


def test_error_keeps_the_earlier_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "results.json", "old")
    with pytest.raises(OSError, match="no space"), atomic_file(tmp_path / "results.json") as temporary:
        temporary.write_text("half")
        raise OSError("no space")
    assert names(tmp_path) == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"


@pytest.mark.parametrize("write", [atomic_file, atomic_folder, naming_disk_errors])
def test_an_error_of_the_disk_names_what_was_written(write, tmp_path):
    def name_in(error: OSError) -> str | None:
        with pytest.raises(OSError) as caught, write(tmp_path / "target"):
            raise error
        return caught.value.filename

    assert name_in(OSError(errno.ENOSPC, "No space left on device")) == str(tmp_path / "target")
    assert name_in(OSError(errno.ENOSPC, "No space left on device", "other")) == "other"
    assert name_in(OSError(errno.ECONNREFUSED, "Connection refused")) is None


def test_file_in_a_missing_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="Folder .*missing not found"), atomic_file(tmp_path / "missing" / "a"):
        pytest.fail("must not begin")


def test_folder_replaces_the_earlier_one(tmp_path):
    for text in ("old", "new"):
        write_folder(tmp_path / "best", text)
        assert names(tmp_path) == ["best"]
        assert (tmp_path / "best" / "inner" / "weights").read_text() == text
        verify(tmp_path / "best")


def test_existing_folder_is_kept_unless_it_is_empty(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / ".DS_Store").write_bytes(b"icons")
    with atomic_folder(tmp_path / "best") as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(FileExistsError, match="not an empty folder"), atomic_folder(tmp_path / "best"):
        pytest.fail("must not begin")
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "best" / "weights", overwrite=True):
        pytest.fail("must not begin")
    assert (tmp_path / "best" / "weights").read_text() == "old"


def test_error_keeps_the_earlier_folder_and_nothing_else(tmp_path):
    write_folder(tmp_path / "best", "old")
    with pytest.raises(OSError, match="no space"), atomic_folder(tmp_path / "best", overwrite=True) as folder:
        (folder / "weights").write_text("half")
        raise OSError("no space")
    assert names(tmp_path) == ["best"]
    assert (tmp_path / "best" / "inner" / "weights").read_text() == "old"


@pytest.mark.parametrize("call", [0, 1])
def test_kill_between_the_renames_is_undone(call, tmp_path, monkeypatch):
    write_folder(tmp_path / "best", "old")
    renames = []

    def rename_until_killed(self, target):
        if len(renames) == call:
            raise Killed
        renames.append(target)
        os.rename(self, target)

    temporary = tmp_path / f"{TEMPORARY}best"
    temporary.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "rename", rename_until_killed)
        with pytest.raises(Killed):
            replace_folder(temporary, tmp_path / "best")
    recover(tmp_path)
    assert names(tmp_path) == ["best"]
    assert (tmp_path / "best" / "inner" / "weights").read_text() == "old"


def test_recovery_removes_what_is_partly_written_replaced_or_removed(tmp_path):
    write_folder(tmp_path / "best", "new")
    for left in ("0123", "removing-step", "replaced-best"):
        (tmp_path / f"{TEMPORARY}{left}" / "inner").mkdir(parents=True)
    (tmp_path / f"{TEMPORARY}4567.parquet").touch()
    recover(tmp_path)
    assert names(tmp_path) == ["best"]
    assert (tmp_path / "best" / "inner" / "weights").read_text() == "new"


def test_temporary_folder_is_removed(tmp_path):
    with temporary_folder(tmp_path) as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path and folder.name.startswith(TEMPORARY)
    assert names(tmp_path) == []


def test_folder_is_renamed_before_it_is_removed(tmp_path, monkeypatch):
    write_folder(tmp_path / "step", "old")

    def kill(_folder, **options):
        if not options:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", kill)
        with pytest.raises(Killed):
            remove_folder(tmp_path / "step")
    assert [name.startswith(TEMPORARY) for name in names(tmp_path)] == [True]
    recover(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "weights cannot be read"),
        (lambda path: os.truncate(path, 2), "weights has 2 bytes instead of 5"),
        (lambda path: path.write_text("wordz"), "weights does not have the content"),
        (lambda path: (path.parent.parent / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda path: (path.parent.parent / "manifest.json").unlink(), "manifest.json cannot be read"),
    ],
)
def test_damage_is_found_and_named(damage, message, tmp_path):
    write_folder(tmp_path / "step", "words")
    damage(tmp_path / "step" / "inner" / "weights")
    with pytest.raises(ValueError, match=message):
        verify(tmp_path / "step")


def test_settings_are_kept_and_every_difference_is_listed(tmp_path):
    file = tmp_path / "settings.json"
    settings = {"rate": 1.0, "sizes": (224, 224), "data": {"task": "s4"}, "overlay": None}
    keep_settings(file, settings, "Give another --output.")
    keep_settings(file, dict(settings), "Give another --output.")
    other = settings | {"rate": 2.0, "data": {"task": "ms3"}, "overlay": True}
    with pytest.raises(ValueError) as error:
        keep_settings(file, other, "Give another --output.")
    differences = "rate is 2.0, was 1.0; data.task is 'ms3', was 's4'; overlay is True, was not set"
    assert str(error.value) == f"{tmp_path} was created with other settings: {differences}. Give another --output."


def test_setting_that_only_one_run_has_is_a_difference(tmp_path):
    check_settings(tmp_path, {}, {}, "")
    with pytest.raises(ValueError, match="rate is not set, was 1"):
        check_settings(tmp_path, {}, {"rate": 1}, "")


def test_recipes_are_found_by_name_or_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("s4").read_text().startswith("# S4 as published")
    (tmp_path / "mine.yaml").write_text("task: s4")
    assert find_recipe("mine.yaml").read_text() == "task: s4"
    with pytest.raises(FileNotFoundError, match="Recipe s5 not found. Give a YAML file, or one of avss, ms3, .*s4"):
        find_recipe("s5")


@pytest.mark.parametrize(
    "kind, number, passes",
    [(stat.S_IFDIR, errno.EINVAL, True), (stat.S_IFDIR, errno.EIO, False), (stat.S_IFREG, errno.EINVAL, False)],
)
def test_a_file_system_that_does_not_synchronize_folders_can_be_used(tmp_path, monkeypatch, kind, number, passes):
    def refuse(descriptor):
        if stat.S_IFMT(os.fstat(descriptor).st_mode) == kind:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with nullcontext() if passes else pytest.raises(OSError, match=os.strerror(number)):
        write_text(tmp_path / "a.txt", "a")
