"""Tests of src/pcmanet/cli/results.py. Tests of src/pcmanet/cli/results.py. Tests of src/pcmanet/cli/results.py; what runs do with it is tested in test_main.py and test_segmentation.py."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_runs import finish_process, start_process
from PIL import Image

from pcmanet.cli.parquet import describe_columns
from pcmanet.cli.results import (
    CARD,
    RECORDS,
    SETTINGS,
    SHOWN_FRAMES,
    SOURCE,
    Outcome,
    OutputFolder,
    RecordedResults,
    decode_mask,
    encode_mask,
    format_table,
    summarize,
)


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
