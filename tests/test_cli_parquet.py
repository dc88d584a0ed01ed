"""Tests of src/pcmanet/cli/parquet.py. Tests of src/pcmanet/cli/parquet.py, with processes that are killed while they write."""

import os
import signal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from command_runs import finish_process, start_process
from PIL import Image
from pycocotools import mask as coco

from pcmanet.cli import parquet
from pcmanet.cli.parquet import (
    ASIDE,
    COLUMNS,
    FRAMES_PER_BATCH,
    SCHEMA,
    SHARDS,
    ShardWriter,
    describe_columns,
    find_done,
    remove_errors,
    row_of_error,
    rows_of_video,
    shard_name,
)
from pcmanet.cli.results import encode_mask


def record(number: int, *labels: str) -> dict:
    mask = Image.new("L", (4, 3))
    mask.paste(255, (1, 0, 3, 2))
    segments = [{"label": label, "score": 0.5, "segmentation": encode_mask(mask)} for label in labels]
    return {"frame": number, "timestamp": number + 0.9375, "height": 3, "width": 4, "segments": segments}


def test_a_row_per_segment_and_one_for_silence():
    (batch,) = rows_of_video("a.mp4", [record(0, "dog", "cat"), record(1)])
    assert batch.schema.equals(SCHEMA)
    dog, cat, silence = batch.to_pylist()
    assert (dog["video"], dog["frame"], dog["timestamp"], dog["label"]) == ("a.mp4", 0, 0.9375, "dog")
    assert cat == dog | {"label": "cat"}
    expected = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    assert (coco.decode(dog["segmentation"]) == expected).all()
    empty = {"label": None, "score": None, "segmentation": None, "error": None}
    assert silence == {"video": "a.mp4", "frame": 1, "timestamp": 1.9375, "height": 3, "width": 4, **empty}


def test_long_videos_come_in_batches():
    batches = list(rows_of_video("a.mp4", (record(number) for number in range(FRAMES_PER_BATCH * 2 + 1))))
    assert [batch.num_rows for batch in batches] == [FRAMES_PER_BATCH, FRAMES_PER_BATCH, 1]
    assert [row["frame"] for batch in batches for row in batch.to_pylist()] == list(range(FRAMES_PER_BATCH * 2 + 1))


def test_an_error_is_a_row():
    (row,) = row_of_error("b.mp4", "no sound track").to_pylist()
    assert row.pop("video") == "b.mp4"
    assert row.pop("error") == "no sound track"
    assert set(row.values()) == {None}


def test_every_column_is_described():
    table = describe_columns()
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(COLUMNS) == SCHEMA.names
    assert "| `timestamp` | double |" in table


def rows(video: str, number: int = 3) -> list[pyarrow.RecordBatch]:
    """A batch per network frame, in which nothing sounds."""
    frames = [{"video": video, "frame": frame, "timestamp": float(frame)} for frame in range(number)]
    return [pyarrow.RecordBatch.from_pylist([frame], SCHEMA) for frame in frames]


def shards(folder) -> dict[str, list[str]]:
    """Which videos the rows of each shard are of, in order."""
    return {path.name: pyarrow.parquet.read_table(path)["video"].to_pylist() for path in sorted(folder.glob(SHARDS))}


def test_nothing_appears_before_it_is_published(tmp_path):
    writer = ShardWriter(tmp_path, seconds=1000)
    writer.add("a.mp4", rows("a.mp4"))
    writer.add("b.mp4", rows("b.mp4", 2))
    assert shards(tmp_path) == {}
    writer.publish()
    assert shards(tmp_path) == {shard_name(["a.mp4", "b.mp4"]): ["a.mp4"] * 3 + ["b.mp4"] * 2}
    assert not list(tmp_path.glob(f"{ASIDE}*"))
    writer.publish()
    assert len(shards(tmp_path)) == 1


def test_published_by_the_clock(tmp_path):
    times = iter([0.0, 59.0, 60.0, 100.0, 100.5])
    writer = ShardWriter(tmp_path, seconds=60, clock=lambda: next(times))
    for video in "abc":
        writer.add(video, rows(video, 1))
    writer.publish()
    assert sorted(shards(tmp_path).values()) == [["a", "b"], ["c"]]


def test_published_by_size_and_streamed_in_row_groups(tmp_path, monkeypatch):
    (batch,) = rows("a", 1)
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 4 * batch.nbytes)
    monkeypatch.setattr(parquet, "SHARD_BYTES", 10 * batch.nbytes)
    writer = ShardWriter(tmp_path, seconds=1000)
    writer.add("a", rows("a", 11))
    writer.add("b", rows("b", 9))
    assert list(shards(tmp_path).values()) == [["a"] * 11]
    writer.add("c", rows("c", 2))
    with pyarrow.parquet.ParquetFile(tmp_path / shard_name("a")) as file:
        assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [4, 4, 3]
    assert shards(tmp_path)[shard_name("bc")] == ["b"] * 9 + ["c"] * 2


def test_the_same_videos_replace_themselves(tmp_path):
    for _ in range(2):
        writer = ShardWriter(tmp_path, seconds=0)
        writer.add("a", rows("a"))
    assert shards(tmp_path) == {shard_name("a"): ["a"] * 3}


def test_rows_that_break_off_leave_nothing(tmp_path):
    def broken():
        yield from rows("b")
        raise OSError("No space left on device")

    writer = ShardWriter(tmp_path, seconds=1000)
    with pytest.raises(OSError, match="No space left"):
        writer.add("b", broken())
    writer.publish()
    assert list(tmp_path.iterdir()) == []


def test_done_and_failed_are_read_from_the_shards(tmp_path):
    writer = ShardWriter(tmp_path, seconds=0)
    writer.add("a", rows("a"))
    writer.add_error("b", "no sound track")
    assert find_done(tmp_path) == {"a": True, "b": False}


def test_one_video_in_two_shards_is_an_error(tmp_path):
    for videos in ("ab", "bc"):
        writer = ShardWriter(tmp_path, seconds=1000)
        for video in videos:
            writer.add(video, rows(video))
        writer.publish()
    with pytest.raises(ValueError, match="holds b, which another shard"):
        find_done(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "truncated", "foreign"])
def test_a_shard_that_is_none(tmp_path, damage):
    writer = ShardWriter(tmp_path, seconds=0)
    writer.add("a", rows("a"))
    path = tmp_path / shard_name("a")
    if damage == "foreign":
        pyarrow.parquet.write_table(pyarrow.table({"video": ["a"]}), path)
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{path.name} is no whole shard.*Remove it and start again"):
        find_done(tmp_path)


def test_errors_are_taken_out(tmp_path):
    writer = ShardWriter(tmp_path, seconds=1000)
    writer.add("a", rows("a"))
    writer.add_error("b", "no answer")
    writer.add("c", rows("c"))
    writer.publish()
    writer.add_error("d", "no answer")
    writer.publish()
    assert remove_errors(tmp_path) == 2
    assert list(shards(tmp_path).values()) == [["a"] * 3 + ["c"] * 3]
    assert remove_errors(tmp_path) == 0
    assert find_done(tmp_path) == {"a": True, "c": True}


@pytest.mark.parametrize(
    "moment, published", [("open", 0), ("write_table", 0), ("close", 0), ("before rename", 0), ("after rename", 1)]
)
def test_killed_while_it_writes(tmp_path, monkeypatch, moment, published):
    def killed(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    rename = os.replace
    if moment == "open":
        monkeypatch.setattr(parquet.pyarrow.parquet, "ParquetWriter", killed)
    elif "rename" in moment:
        monkeypatch.setattr(
            parquet.os,
            "replace",
            lambda *paths: (rename(*paths) if moment == "after rename" else None, killed()),
        )
    else:
        monkeypatch.setattr(parquet.pyarrow.parquet.ParquetWriter, moment, killed)

    def write() -> None:
        writer = ShardWriter(tmp_path, seconds=0)
        writer.add("a", rows("a"))

    assert finish_process(start_process(write, tmp_path / "log")) == -signal.SIGKILL
    assert len(shards(tmp_path)) == published
    assert find_done(tmp_path) == ({"a": True} if published else {})
    monkeypatch.undo()
    write()
    assert shards(tmp_path) == {shard_name("a"): ["a"] * 3}


def test_killed_while_errors_are_taken_out(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path, seconds=1000)
    writer.add("a", rows("a"))
    writer.add("b", [row_of_error("b", "no answer")])
    writer.publish()
    monkeypatch.setattr(parquet.os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert finish_process(start_process(lambda: remove_errors(tmp_path), tmp_path / "log")) == -signal.SIGKILL
    assert find_done(tmp_path) == {"a": True, "b": False}
