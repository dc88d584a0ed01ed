"""Tests of src/pcmanet/cli/results.py: rows and shards, records of a video, and the output folder, also after kills."""

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from command_runs import finish_process, start_process
from PIL import Image
from pycocotools import mask as coco

from pcmanet import files
from pcmanet.cli import results
from pcmanet.cli.results import (
    CARD,
    COLUMNS,
    FRAMES_PER_BATCH,
    RECORDS,
    SCHEMA,
    SETTINGS,
    SHARDS,
    SOURCE,
    OutputFolder,
    RecordedResults,
    Row,
    ShardWriter,
    decode_mask,
    describe_columns,
    differs,
    encode_mask,
    read_archive,
    remove_videos,
    row_of_error,
    rows_of_video,
    shard_name,
)
from pcmanet.files import temporary_folder


def record(number: int, *labels: str) -> dict:
    mask = Image.new("L", (4, 3))
    mask.paste(255, (1, 0, 3, 2))
    segments = [{"label": label, "score": 0.5, "segmentation": encode_mask(mask)} for label in labels]
    return {"frame": number, "timestamp": number + 0.9375, "height": 3, "width": 4, "segments": segments}


def test_row_per_segment_and_row_for_a_silent_frame():
    identity = {"video": "a.mp4", "origin": "0123", "content": "1 bytes"}
    (batch,) = rows_of_video(identity, [record(0, "dog", "cat"), record(1)])
    assert batch.schema.equals(SCHEMA)
    dog, cat, silence = batch.to_pylist()
    assert (dog["video"], dog["frame"], dog["timestamp"], dog["label"]) == ("a.mp4", 0, 0.9375, "dog")
    assert cat == dog | {"label": "cat"}
    expected = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    assert (coco.decode(dog["segmentation"]) == expected).all()
    empty = {"label": None, "score": None, "segmentation": None, "error": None}
    assert silence == {**identity, "frame": 1, "timestamp": 1.9375, "height": 3, "width": 4, **empty}


def test_long_video_gives_batches():
    batches = list(rows_of_video({"video": "a.mp4"}, (record(number) for number in range(FRAMES_PER_BATCH * 2 + 1))))
    assert [batch.num_rows for batch in batches] == [FRAMES_PER_BATCH, FRAMES_PER_BATCH, 1]
    assert [row["frame"] for batch in batches for row in batch.to_pylist()] == list(range(FRAMES_PER_BATCH * 2 + 1))


def test_row_of_an_error():
    (row,) = row_of_error({"video": "b.mp4", "content": "1 bytes"}, "no audio track").to_pylist()
    assert row.pop("video") == "b.mp4"
    assert row.pop("content") == "1 bytes"
    assert row.pop("error") == "no audio track"
    assert set(row.values()) == {None}


def test_every_column_is_described():
    table = describe_columns()
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(COLUMNS) == SCHEMA.names
    assert "| `timestamp` | double |" in table


def rows(video: str, number: int = 3) -> list[pyarrow.RecordBatch]:
    """Return one batch per network frame without sounding objects."""
    frames = [{"video": video, "frame": frame, "timestamp": float(frame)} for frame in range(number)]
    return [pyarrow.RecordBatch.from_pylist([frame], SCHEMA) for frame in frames]


def shards(folder) -> dict[str, list[str]]:
    """Return the column `video` of each shard."""
    return {path.name: pyarrow.parquet.read_table(path)["video"].to_pylist() for path in sorted(folder.glob(SHARDS))}


def test_shard_appears_when_it_is_published(tmp_path):
    writer = ShardWriter(tmp_path, seconds=1000)
    writer.add("a.mp4", rows("a.mp4"))
    writer.add("b.mp4", rows("b.mp4", 2))
    assert shards(tmp_path) == {}
    writer.publish()
    assert shards(tmp_path) == {shard_name(["a.mp4", "b.mp4"]): ["a.mp4"] * 3 + ["b.mp4"] * 2}
    assert not list(tmp_path.glob(".*"))
    writer.publish()
    assert len(shards(tmp_path)) == 1


def test_published_after_a_time(tmp_path):
    times = iter([0.0, 59.0, 60.0, 100.0, 100.5])
    writer = ShardWriter(tmp_path, seconds=60, clock=lambda: next(times))
    for video in "abc":
        writer.add(video, rows(video, 1))
    writer.publish()
    assert sorted(shards(tmp_path).values()) == [["a", "b"], ["c"]]


def test_published_after_a_size_in_row_groups(tmp_path, monkeypatch):
    (batch,) = rows("a", 1)
    monkeypatch.setattr(results, "ROW_GROUP_BYTES", 4 * batch.nbytes)
    monkeypatch.setattr(results, "SHARD_BYTES", 10 * batch.nbytes)
    writer = ShardWriter(tmp_path, seconds=1000)
    writer.add("a", rows("a", 11))
    writer.add("b", rows("b", 9))
    assert list(shards(tmp_path).values()) == [["a"] * 11]
    writer.add("c", rows("c", 2))
    with pyarrow.parquet.ParquetFile(tmp_path / shard_name("a")) as file:
        assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [4, 4, 3]
    assert shards(tmp_path)[shard_name("bc")] == ["b"] * 9 + ["c"] * 2


def test_shard_of_the_same_videos_is_replaced(tmp_path):
    for _ in range(2):
        writer = ShardWriter(tmp_path, seconds=0)
        writer.add("a", rows("a"))
    assert shards(tmp_path) == {shard_name("a"): ["a"] * 3}


def test_rows_that_end_with_an_error_leave_nothing(tmp_path):
    def broken():
        yield from rows("b")
        raise OSError("No space left on device")

    writer = ShardWriter(tmp_path, seconds=1000)
    with pytest.raises(OSError, match="No space left"):
        writer.add("b", broken())
    writer.publish()
    assert list(tmp_path.iterdir()) == []


def test_segmented_and_failed_videos_are_read_from_the_shards(tmp_path):
    writer = ShardWriter(tmp_path, seconds=0)
    writer.add("a", rows("a"))
    writer.add_error({"video": "b"}, "no audio track")
    writer.add("c", rows_of_video({"video": "c", "origin": "0123"}, [record(0)]))
    assert read_archive(tmp_path) == {"a": True, "b": False, "c": True, "0123": True}


def test_video_in_two_shards_is_an_error(tmp_path):
    for videos in ("ab", "bc"):
        writer = ShardWriter(tmp_path, seconds=1000)
        for video in videos:
            writer.add(video, rows(video))
        writer.publish()
    with pytest.raises(ValueError, match="contains b, which another shard"):
        read_archive(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "truncated", "foreign"])
def test_damaged_shard_is_an_error(tmp_path, damage):
    writer = ShardWriter(tmp_path, seconds=0)
    writer.add("a", rows("a"))
    path = tmp_path / shard_name("a")
    if damage == "foreign":
        pyarrow.parquet.write_table(pyarrow.table({"video": ["a"]}), path)
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{path.name} is not a complete shard.*Remove it"):
        read_archive(tmp_path)


def is_failed(row: Row) -> bool:
    return row["error"] is not None


def test_changed_videos_are_removed(tmp_path):
    writer = ShardWriter(tmp_path, seconds=1000)
    for video in "abc":
        frames = [record(0, "dog"), record(1)]
        writer.add(video, rows_of_video({"video": video, "content": f"{video} as it was"}, frames))
    writer.publish()

    def refuse_c(row: Row) -> bool:
        if row["video"] == "c":
            raise ValueError("another c")
        return True

    with pytest.raises(ValueError, match="another c"):
        remove_videos(tmp_path, refuse_c)
    assert list(shards(tmp_path).values()) == [["a"] * 2 + ["b"] * 2 + ["c"] * 2]
    assert remove_videos(tmp_path, lambda row: row["content"] == "b as it was") == 1
    assert list(shards(tmp_path).values()) == [["a"] * 2 + ["c"] * 2]


@pytest.mark.parametrize(
    "earlier, content, expected", [("x", "y", True), ("x", "x", False), (None, "x", False), ("x", None, False)]
)
def test_only_known_contents_differ(earlier: str | None, content: str | None, expected: bool):
    assert differs(earlier, content) == expected


def test_errors_are_removed(tmp_path):
    writer = ShardWriter(tmp_path, seconds=1000)
    writer.add("a", rows("a"))
    writer.add_error({"video": "b"}, "no answer")
    writer.add("c", rows("c"))
    writer.publish()
    writer.add_error({"video": "d"}, "no answer")
    writer.publish()
    assert remove_videos(tmp_path, is_failed) == 2
    assert list(shards(tmp_path).values()) == [["a"] * 3 + ["c"] * 3]
    assert remove_videos(tmp_path, is_failed) == 0
    assert read_archive(tmp_path) == {"a": True, "c": True}


@pytest.mark.parametrize(
    "step, published", [("open", 0), ("write_table", 0), ("close", 0), ("before rename", 0), ("after rename", 1)]
)
def test_kill_while_a_shard_is_written(tmp_path, monkeypatch, step, published):
    def killed(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    rename = os.replace
    if step == "open":
        monkeypatch.setattr(results.pyarrow.parquet, "ParquetWriter", killed)
    elif "rename" in step:
        monkeypatch.setattr(
            files.os,
            "replace",
            lambda *paths: (rename(*paths) if step == "after rename" else None, killed()),
        )
    else:
        monkeypatch.setattr(results.pyarrow.parquet.ParquetWriter, step, killed)

    def write() -> None:
        writer = ShardWriter(tmp_path, seconds=0)
        writer.add("a", rows("a"))

    assert finish_process(start_process(write, tmp_path / "log")) == -signal.SIGKILL
    assert len(shards(tmp_path)) == published
    assert read_archive(tmp_path) == ({"a": True} if published else {})
    monkeypatch.undo()
    write()
    assert shards(tmp_path) == {shard_name("a"): ["a"] * 3}


def test_kill_while_errors_are_removed(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path, seconds=1000)
    writer.add("a", rows("a"))
    writer.add("b", [row_of_error({"video": "b"}, "no answer")])
    writer.publish()
    monkeypatch.setattr(files.os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert (
        finish_process(start_process(lambda: remove_videos(tmp_path, is_failed), tmp_path / "log")) == -signal.SIGKILL
    )
    assert read_archive(tmp_path) == {"a": True, "b": False}


def mask(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 2, (5, 7), dtype=np.uint8) * 255)


@pytest.mark.parametrize("value", [0, 255])
def test_mask_of_one_value(value: int):
    plain = Image.new("L", (7, 5), value)
    code = encode_mask(plain)
    assert code["size"] == [5, 7]
    assert decode_mask(code).getextrema() == (value, value)


def test_mask_is_decoded():
    assert decode_mask(encode_mask(mask(0))).tobytes() == mask(0).tobytes()


def test_results_are_read_one_by_one(tmp_path):
    results = [
        {"timestamp": 0.92, "segments": [{"score": 0.75, "label": "chien \u00e9tonn\u00e9", "mask": mask(1)}]},
        {"timestamp": 1.92, "segments": []},
        {"timestamp": 2.92, "segments": [{"score": 0.5, "label": label, "mask": mask(2)} for label in ("a", "b")]},
    ]
    recorded = RecordedResults(tmp_path / "segments.jsonl")
    for result in results:
        recorded.add(result, (5, 7))
    assert len(recorded) == 3
    for number in (2, 0, 1, -1):
        read, original = recorded[number], results[number]
        assert read["timestamp"] == original["timestamp"]
        for found, expected in zip(read["segments"], original["segments"], strict=True):
            assert found.pop("mask").tobytes() == expected["mask"].tobytes()
            assert found == {"score": expected["score"], "label": expected["label"]}
    assert [len(result["segments"]) for result in recorded] == [1, 0, 2]
    with pytest.raises(IndexError):
        recorded[3]


def test_lines_are_json(tmp_path):
    recorded = RecordedResults(tmp_path / "segments.jsonl")
    recorded.add({"timestamp": 0.5, "segments": [{"score": 1.0, "label": "dog", "mask": mask(3)}]}, (5, 7))
    (line,) = (tmp_path / "segments.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record == next(recorded.records())
    assert {name: record[name] for name in ("frame", "timestamp", "height", "width")} == {
        "frame": 0,
        "timestamp": 0.5,
        "height": 5,
        "width": 7,
    }
    assert decode_mask(record["segments"][0]["segmentation"]).tobytes() == mask(3).tobytes()


VIDEO = {"video": "/a/clip.mp4", "audio": None, "content": "5 bytes"}


def begin(folder: Path, *, is_archive: bool = False, overwrite: bool = False, **settings: object) -> OutputFolder:
    output = OutputFolder(folder)
    output.begin("owner/name", settings, is_archive=is_archive, overwrite=overwrite)
    return output


def test_settings_and_card_are_written(tmp_path: Path):
    begin(tmp_path / "out", is_archive=True, threshold=0.5).leave()
    assert json.loads((tmp_path / "out" / SETTINGS).read_text()) == {
        "model": "owner/name",
        "settings": {"threshold": 0.5},
    }
    card = (tmp_path / "out" / CARD).read_text()
    assert "data_files: segments-*.parquet" in card
    assert describe_columns() in card


def test_settings_apply_only_to_results(tmp_path: Path):
    begin(tmp_path / "out", is_archive=True, rate=1).leave()
    output = begin(tmp_path / "out", rate=2)
    assert not (tmp_path / "out" / CARD).exists()
    with temporary_folder(output.path) as temporary:
        (temporary / "complete").mkdir()
        output.publish(temporary / "complete", "clip", VIDEO)
    output.leave()
    with pytest.raises(ValueError, match="rate is 3, was 2"):
        begin(tmp_path / "out", rate=3)


def test_damaged_files_are_named_with_the_remedy(tmp_path: Path):
    output = begin(tmp_path, rate=1)
    with temporary_folder(output.path) as temporary:
        (temporary / "complete").mkdir()
        output.publish(temporary / "complete", "clip", VIDEO)
    output.leave()
    (tmp_path / "clip" / "video.json").write_text('{"video":')
    with pytest.raises(
        ValueError, match=r"video\.json is damaged: Expecting value.* Give another --output, or --overwrite"
    ):
        output.has_changed("clip", VIDEO)
    (tmp_path / SETTINGS).write_text("")
    with pytest.raises(
        ValueError, match=rf"{SETTINGS} is damaged: Expecting value.* Give another --output, or --overw"
    ):
        begin(tmp_path, rate=1)
    begin(tmp_path, rate=1, overwrite=True).leave()


def test_several_processes_of_one_run_but_no_second_run(tmp_path: Path):
    first = begin(tmp_path / "out")
    second = OutputFolder(tmp_path / "out")
    second.join()
    first.leave()
    with pytest.raises(BlockingIOError, match="Another pcmanet is writing"):
        begin(tmp_path / "out")
    second.leave()
    begin(tmp_path / "out").leave()


def test_process_that_ends_releases_the_lock(tmp_path: Path):
    def begin_and_end() -> None:
        OutputFolder(tmp_path / "out").begin("owner/name", {}, is_archive=False)

    assert finish_process(start_process(begin_and_end, tmp_path / "log")) == 0
    begin(tmp_path / "out").leave()


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path):
    output = begin(tmp_path / "out")
    (tmp_path / "out" / ".pcmanet-1234.parquet").write_bytes(b"half")
    (tmp_path / "out" / ".pcmanet-folder").mkdir()
    (tmp_path / "out" / ".pcmanet-folder" / RECORDS).write_bytes(b"half")
    output.leave()
    begin(tmp_path / "out").leave()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".pcmanet.lock", SETTINGS]


def test_folder_of_a_video_is_replaced(tmp_path: Path):
    output = begin(tmp_path / "out")
    for text in ("first", "second"):
        with temporary_folder(output.path) as temporary:
            folder = temporary / "complete"
            folder.mkdir()
            (folder / RECORDS).write_text(text)
            output.publish(folder, "clip", VIDEO)
        assert output.has_video("clip")
        assert json.loads((tmp_path / "out" / "clip" / SOURCE).read_text()) == VIDEO
        assert (tmp_path / "out" / "clip" / RECORDS).read_text() == text
        assert not list((tmp_path / "out").glob(".pcmanet-*"))
    output.leave()


def test_results_belong_to_a_video_and_its_content(tmp_path: Path):
    output = begin(tmp_path / "out")
    with temporary_folder(output.path) as temporary:
        (temporary / "complete").mkdir()
        output.publish(temporary / "complete", "clip", VIDEO)
    assert not output.has_changed("clip", VIDEO)
    assert output.has_changed("clip", VIDEO | {"content": "6 bytes"})
    assert not output.has_changed("clip", VIDEO | {"content": None})
    with pytest.raises(ValueError, match=r"results of /a/clip\.mp4, not of /a/clip\.mp4 with the audio of /b\.wav"):
        output.has_changed("clip", VIDEO | {"audio": "/b.wav"})
    output.leave()


def test_results_of_another_video_are_not_replaced(tmp_path: Path):
    """Where `Clip` and `clip` are one folder, as on most disks of macOS."""
    output = begin(tmp_path / "out")

    def publish(video: dict[str, str | None]) -> None:
        with temporary_folder(output.path) as temporary:
            (temporary / "complete").mkdir()
            output.publish(temporary / "complete", "clip", video)

    publish(VIDEO)
    publish(VIDEO | {"content": "6 bytes"})
    with pytest.raises(ValueError, match=r"results of /a/clip\.mp4, not of /a/Clip\.mp4"):
        publish(VIDEO | {"video": "/a/Clip.mp4"})
    assert output.has_changed("clip", VIDEO)
    output.leave()


@pytest.mark.parametrize("as_folder", [True, False])
def test_files_of_others_are_not_replaced(tmp_path: Path, as_folder: bool):
    output = begin(tmp_path / "out")
    path = tmp_path / "out" / "clip"
    if as_folder:
        path.mkdir()
    precious = path / "thesis.txt" if as_folder else path
    precious.write_text("precious")
    with temporary_folder(output.path) as temporary:
        (temporary / "complete").mkdir()
        with pytest.raises(FileExistsError, match="pcmanet did not write"):
            output.publish(temporary / "complete", "clip", VIDEO)
    assert precious.read_text() == "precious"
    output.leave()


def test_overwrite_removes_results_only(tmp_path: Path):
    output = begin(tmp_path / "out", is_archive=True, rate=1)
    (tmp_path / "out" / "segments-0123456789abcdef.parquet").write_bytes(b"")
    (tmp_path / "out" / "clip" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "clip" / "masks" / "0000_at_0.938s.png").write_bytes(b"")
    output.leave()
    begin(tmp_path / "out", overwrite=True, rate=2).leave()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".pcmanet.lock", SETTINGS]


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._clip"])
def test_files_of_the_system_are_no_files_of_others(tmp_path: Path, name: str):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"icons")
    output = begin(tmp_path / "out", rate=1)
    (tmp_path / "out" / name).write_bytes(b"icons")
    output.leave()
    output = begin(tmp_path / "out", rate=2)  # the folder has no results yet
    for _ in range(2):
        with temporary_folder(output.path) as temporary:
            (temporary / "complete").mkdir()
            output.publish(temporary / "complete", "clip", VIDEO)
        (tmp_path / "out" / "clip" / name).write_bytes(b"icons")
    output.leave()
    begin(tmp_path / "out", rate=3, overwrite=True).leave()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".pcmanet.lock", SETTINGS]


def test_results_of_other_videos_are_known(tmp_path: Path):
    output = OutputFolder(tmp_path / "out")
    assert not output.has_others("clip", "/a/clip.mp4")
    output = begin(tmp_path / "out")
    (tmp_path / "out" / ".DS_Store").write_bytes(b"icons")
    assert not output.has_others("clip", "/a/clip.mp4")
    with temporary_folder(output.path) as temporary:
        (temporary / "complete").mkdir()
        output.publish(temporary / "complete", "clip", VIDEO)
    output.leave()
    assert not output.has_others("clip", "/a/clip.mp4")
    assert output.has_others("clip", "/b/clip.mp4")
    (tmp_path / "out" / "other").mkdir()
    assert output.has_others("clip", "/a/clip.mp4")


def test_a_file_system_without_locks_is_an_error_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(results.fcntl, "flock", refuse)
    with pytest.raises(OSError, match=r"\.pcmanet\.lock cannot be locked: Function not implemented\. .* another disk"):
        begin(tmp_path / "out")
