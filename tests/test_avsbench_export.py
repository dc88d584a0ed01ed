"""Tests of dataset_scripts/avsbench/export.py and of `python -m pcmanet.dataset_scripts.avsbench export`."""

import shutil

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image
from written_trees import write_trees

from pcmanet.dataset_scripts.avsbench import export as export_module
from pcmanet.dataset_scripts.avsbench import load_avsbench
from pcmanet.dataset_scripts.avsbench.__main__ import main
from pcmanet.dataset_scripts.avsbench.export import export, push
from pcmanet.dataset_scripts.avsbench.rows import RowSettings
from pcmanet.dataset_scripts.problems import DatasetError
from pcmanet.dataset_scripts.sounding_shapes import SoundingShapes, write_clip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_trees(tmp_path_factory.mktemp("avsbench"), s4={"train": 3, "test": 1}, avss={"train": 3, "val": 1})


@pytest.fixture
def trees(written, tmp_path):
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


def shards(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_an_export_loads_and_streams_like_its_source(written, tmp_path, capsys, file_format):
    out = tmp_path / "out"
    assert main(["export", str(written), str(out), "--clips-per-shard", "2", "--format", file_format]) == 0
    assert "load_dataset(" in capsys.readouterr().out
    assert shards(out / "s4") == [
        f"test-00000-of-00001.{file_format}",
        f"train-00000-of-00002.{file_format}",
        f"train-00001-of-00002.{file_format}",
    ]
    for name, split in (("s4", "train"), ("s4", "test"), ("avss", "train"), ("avss", "validation")):
        expected = load_avsbench(written, name, split=split, cache_dir=tmp_path / "cache")
        read = load_dataset(str(out), name, split=split, cache_dir=str(tmp_path / "cache"))
        assert read.features == expected.features
        assert read.with_format("arrow")[:].to_pylist() == expected.with_format("arrow")[:].to_pylist()
        streamed = next(iter(load_dataset(str(out), name, split=split, streaming=True)))
        np.testing.assert_array_equal(np.asarray(streamed["masks"][0]), np.asarray(expected[0]["masks"][0]))
    assert "0 background, 1 accordion" in (out / "README.md").read_text()


def test_an_interrupted_export_leaves_nothing_to_read_and_is_resumed(written, tmp_path, monkeypatch):
    out, replace_file, done = tmp_path / "out", export_module.replace_file, []

    def replace_once(temporary, path):
        if done:
            raise KeyboardInterrupt
        done.append(path.name)
        replace_file(temporary, path)

    monkeypatch.setattr(export_module, "replace_file", replace_once)
    with pytest.raises(KeyboardInterrupt):
        export(written, out, "s4", RowSettings(), clips_per_shard=1)
    assert shards(out) == [] and shards(out / ".s4.partial") == done
    first = (out / ".s4.partial" / done[0]).stat()

    monkeypatch.setattr(export_module, "replace_file", replace_file)
    (out / ".s4.partial" / ".pcmanet-17.parquet").write_bytes(b"half")
    folder = export(written, out, "s4", RowSettings(), clips_per_shard=1)
    assert len(shards(folder)) == 4 and (folder / done[0]).stat().st_ino == first.st_ino
    assert sorted(path.name for path in folder.glob(".*")) == [".export.json"]
    assert [path.name for path in out.glob(".*")] == []

    # A complete export is not written again; other settings are another export.
    export(written, out, "s4", RowSettings(), clips_per_shard=1)
    assert (folder / done[0]).stat().st_mtime_ns == first.st_mtime_ns
    with pytest.raises(ValueError, match="clips_per_shard is 2, was 1"):
        export(written, out, "s4", RowSettings(), clips_per_shard=2)


def test_several_processes_write_the_same_shards(written, tmp_path):
    one = export(written, tmp_path / "one", "s4", RowSettings(), clips_per_shard=1)
    two = export(written, tmp_path / "two", "s4", RowSettings(), clips_per_shard=1, num_proc=2)
    assert shards(one) == shards(two)
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in shards(one))


def test_problems_stop_an_export_or_are_skipped(trees, tmp_path, caplog):
    masks = sorted(trees.glob("Single-source/s4_data/gt_masks/train/*/*/*.png"))
    Image.fromarray(np.full((224, 224), 100, np.uint8)).save(masks[0])
    Image.fromarray(np.full((224, 224), 200, np.uint8)).save(masks[1])
    with pytest.raises(DatasetError) as caught:
        export(trees, tmp_path / "out", "s4", RowSettings(), clips_per_shard=1)
    assert sorted(problem.path for problem in caught.value.problems) == [str(path) for path in masks[:2]]
    assert shards(tmp_path / "out") == []
    folder = export(trees, tmp_path / "skipped", "s4", RowSettings(), on_error="skip")
    (record,) = caplog.records
    assert "Skipped 2 of" in record.message and str(masks[0]) in record.message
    assert len(load_dataset(str(folder.parent), "s4", split="train", cache_dir=str(tmp_path / "cache"))) == 1


def test_a_custom_folder_is_exported(tmp_path):
    root = tmp_path / "custom"
    write_clip(
        SoundingShapes("ms3", "test", length=1, height=32, width=32, num_frames=1),
        0,
        _folder(root) / "clip.mp4",
    )
    (root / "clips.csv").write_text("video,split\nclip.mp4,test\n")
    (root / "classes.txt").write_text("background\ndog\n")
    assert main(["export", str(root), str(tmp_path / "out"), "--frames-per-second", "4"]) == 0
    row = load_dataset(str(tmp_path / "out"), "folder", split="test", cache_dir=str(tmp_path / "cache"))[0]
    assert len(row["frames"]) == 4 and row["annotated_frames"] == [False] * 4
    assert "`folder`: 0 background, 1 dog." in (tmp_path / "out" / "README.md").read_text()


def _folder(path):
    path.mkdir(parents=True)
    return path


def test_push_uploads_complete_exports_to_a_private_repository(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(export_module, "upload_folder", lambda *names, **options: calls.append((*names, options)))
    push(tmp_path, "me/data")
    ((folder, repository, options),) = calls
    assert (folder, repository) == (tmp_path, "me/data")
    assert (options["repo_type"], options["private"], options["exclude"]) == ("dataset", True, [".*", "*/.*"])


def test_an_invalid_repository_name_is_rejected_before_the_export(written, tmp_path, capsys):
    assert main(["export", str(written), str(tmp_path / "out"), "--push-to-hub", "me/my data"]) == 1
    assert "Repo id must" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [{"file_format": "csv"}, {"clips_per_shard": 0}, {"on_error": "ignore"}])
def test_invalid_arguments_are_rejected(written, tmp_path, arguments):
    with pytest.raises(ValueError, match="Expected one of"):
        export(written, tmp_path, "s4", RowSettings(), **arguments)
