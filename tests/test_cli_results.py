"""Tests of src/pcmanet/cli/results.py. Tests of src/pcmanet/cli/results.py, with processes that are killed while they write. Tests of src/pcmanet/cli/results.py. Tests of src/pcmanet/cli/results.py. Tests of src/pcmanet/cli/results.py; what runs do with it is tested in test_main.py and test_segmentation.py."""

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

from pcmanet.cli import results
from pcmanet.cli.results import (
    ASIDE,
    CARD,
    COLUMNS,
    FRAMES_PER_BATCH,
    RECORDS,
    SCHEMA,
    SETTINGS,
    SHARDS,
    SHOWN_FRAMES,
    SOURCE,
    Outcome,
    OutputFolder,
    RecordedResults,
    ShardWriter,
    decode_mask,
    describe_columns,
    encode_mask,
    find_done,
    format_table,
    remove_errors,
    row_of_error,
    rows_of_video,
    shard_name,
    summarize,
)


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
        monkeypatch.setattr(results.pyarrow.parquet, "ParquetWriter", killed)
    elif "rename" in moment:
        monkeypatch.setattr(
            results.os,
            "replace",
            lambda *paths: (rename(*paths) if moment == "after rename" else None, killed()),
        )
    else:
        monkeypatch.setattr(results.pyarrow.parquet.ParquetWriter, moment, killed)

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
    monkeypatch.setattr(results.os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert finish_process(start_process(lambda: remove_errors(tmp_path), tmp_path / "log")) == -signal.SIGKILL
    assert find_done(tmp_path) == {"a": True, "b": False}


def mask(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 2, (5, 7), dtype=np.uint8) * 255)


@pytest.mark.parametrize("value", [0, 255])
def test_mask_of_one_value(value: int):
    plain = Image.new("L", (7, 5), value)
    code = encode_mask(plain)
    assert code["size"] == [5, 7]
    assert decode_mask(code).getextrema() == (value, value)


def test_mask_comes_back():
    assert decode_mask(encode_mask(mask(0))).tobytes() == mask(0).tobytes()


def test_results_come_back_one_by_one(tmp_path):
    results = [
        {"timestamp": 0.92, "segments": [{"score": 0.75, "label": "chien \u00e9tonn\u00e9", "mask": mask(1)}]},
        {"timestamp": 1.92, "segments": []},
        {"timestamp": 2.92, "segments": [{"score": 0.5, "label": label, "mask": mask(2)} for label in ("a", "b")]},
    ]
    recorded = RecordedResults(tmp_path / "segments.jsonl")
    recorded.write(iter(results), (5, 7))
    assert len(recorded) == 3
    for number in (2, 0, 1, -1):
        back, original = recorded[number], results[number]
        assert back["timestamp"] == original["timestamp"]
        for found, expected in zip(back["segments"], original["segments"], strict=True):
            assert found.pop("mask").tobytes() == expected["mask"].tobytes()
            assert found == {"score": expected["score"], "label": expected["label"]}
    assert [len(result["segments"]) for result in recorded] == [1, 0, 2]
    with pytest.raises(IndexError):
        recorded[3]


def test_lines_are_json_that_others_read(tmp_path):
    recorded = RecordedResults(tmp_path / "segments.jsonl")
    recorded.write([{"timestamp": 0.5, "segments": [{"score": 1.0, "label": "dog", "mask": mask(3)}]}], (5, 7))
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


def recorded(path: Path, *found: tuple[str, ...]) -> RecordedResults:
    """One network frame per argument; every mask covers a quarter of the picture."""
    mask = Image.fromarray(np.kron([[1, 0], [0, 0]], np.ones((2, 3))).astype(np.uint8) * 255)
    results = RecordedResults(path / "segments.jsonl")
    frames = (
        {"timestamp": float(number), "segments": [{"label": label, "score": 0.5, "mask": mask} for label in labels]}
        for number, labels in enumerate(found)
    )
    results.write(frames, (4, 6))
    return results


def test_one_line(tmp_path: Path):
    results = recorded(tmp_path, ("dog",), (), ("cat", "dog"))
    assert summarize("a.mp4", results) == Outcome("a.mp4", 3, (("dog", 2), ("cat", 1)))
    assert summarize("a.mp4", results).line == "a.mp4: dog 2, cat 1 (3 frames)"
    assert summarize("b.mp4", recorded(tmp_path, (), ())).line == "b.mp4: nothing sounds (2 frames)"
    assert Outcome("c.mp4", error="no sound").line == "failed: c.mp4: no sound"


def test_table(tmp_path: Path):
    assert format_table(recorded(tmp_path, ("dog", "a very long label"), ())).splitlines() == [
        "  second  what sounds        score  share of the picture",
        "    0.00  dog                 0.50                 25.0%",
        "          a very long label   0.50                 25.0%",
        "    1.00  nothing",
    ]


def test_table_of_a_long_video_ends(tmp_path: Path):
    lines = format_table(recorded(tmp_path, *[()] * (SHOWN_FRAMES + 7))).splitlines()
    assert len(lines) == SHOWN_FRAMES + 2
    assert lines[-1].strip() == "...  and 7 more frames"


VIDEO = {"video": "/a/clip.mp4", "audio": None}


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


def test_settings_bind_only_where_there_is_a_result(tmp_path: Path):
    begin(tmp_path / "out", is_archive=True, rate=1).leave()
    output = begin(tmp_path / "out", rate=2)
    assert not (tmp_path / "out" / CARD).exists()
    with output.aside() as aside:
        (aside / "whole").mkdir()
        output.publish(aside / "whole", "clip", VIDEO)
    output.leave()
    with pytest.raises(ValueError, match="begun with another rate"):
        begin(tmp_path / "out", rate=3)


def test_several_processes_of_one_run_but_no_second_run(tmp_path: Path):
    first = begin(tmp_path / "out")
    second = OutputFolder(tmp_path / "out")
    second.join()
    first.leave()
    with pytest.raises(BlockingIOError, match="Another pcmanet is writing"):
        begin(tmp_path / "out")
    second.leave()
    begin(tmp_path / "out").leave()


def test_a_process_that_ends_leaves_the_lock(tmp_path: Path):
    def begin_and_end() -> None:
        OutputFolder(tmp_path / "out").begin("owner/name", {}, is_archive=False)

    assert finish_process(start_process(begin_and_end, tmp_path / "log")) == 0
    begin(tmp_path / "out").leave()


def test_leftovers_are_removed(tmp_path: Path):
    output = begin(tmp_path / "out")
    (tmp_path / "out" / ".pcmanet-1234.parquet").write_bytes(b"half")
    (tmp_path / "out" / ".pcmanet-folder").mkdir()
    (tmp_path / "out" / ".pcmanet-folder" / RECORDS).write_bytes(b"half")
    output.leave()
    begin(tmp_path / "out").leave()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".pcmanet.lock", SETTINGS]


def test_a_folder_appears_whole_and_replaces_an_earlier_one(tmp_path: Path):
    output = begin(tmp_path / "out")
    for text in ("first", "second"):
        with output.aside() as aside:
            whole = aside / "whole"
            whole.mkdir()
            (whole / RECORDS).write_text(text)
            output.publish(whole, "clip", VIDEO)
        assert output.holds("clip")
        assert json.loads((tmp_path / "out" / "clip" / SOURCE).read_text()) == VIDEO
        assert (tmp_path / "out" / "clip" / RECORDS).read_text() == text
        assert not list((tmp_path / "out").glob(".pcmanet-*"))
    output.leave()


@pytest.mark.parametrize("as_folder", [True, False])
def test_others_keep_their_place(tmp_path: Path, as_folder: bool):
    output = begin(tmp_path / "out")
    place = tmp_path / "out" / "clip"
    if as_folder:
        place.mkdir()
    precious = place / "thesis.txt" if as_folder else place
    precious.write_text("precious")
    with output.aside() as aside:
        (aside / "whole").mkdir()
        with pytest.raises(FileExistsError, match="which pcmanet did not write"):
            output.publish(aside / "whole", "clip", VIDEO)
    assert precious.read_text() == "precious"
    output.leave()


def test_overwriting_removes_results_alone(tmp_path: Path):
    output = begin(tmp_path / "out", is_archive=True, rate=1)
    (tmp_path / "out" / "segments-0123456789abcdef.parquet").write_bytes(b"")
    (tmp_path / "out" / "clip" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "clip" / "masks" / "0000_at_0.938s.png").write_bytes(b"")
    output.leave()
    begin(tmp_path / "out", overwrite=True, rate=2).leave()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".pcmanet.lock", SETTINGS]
