"""Tests of command/output_folder.py; what runs do with it is tested in test_main.py and test_segmentation.py."""

import json
from pathlib import Path

import pytest
from command_runs import finish_process, start_process

from pcmanet.command.archive_rows import describe_columns
from pcmanet.command.output_folder import CARD, RECORDS, SETTINGS, SOURCE, OutputFolder


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
