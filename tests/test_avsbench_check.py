"""Tests of dataset_scripts/avsbench/check.py and of `python -m pcmanet.dataset_scripts.avsbench check`."""

import shutil
import wave

import numpy as np
import pytest
from PIL import Image
from written_trees import write_trees

from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.dataset_scripts.avsbench.__main__ import main
from pcmanet.dataset_scripts.avsbench.check import check
from pcmanet.dataset_scripts.avsbench.rows import RowSettings


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_trees(tmp_path_factory.mktemp("avsbench"), s4={"train": 2, "val": 1}, avss={"train": 2, "test": 1})


@pytest.fixture
def trees(written, tmp_path):
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


def test_complete_trees_are_reported_next_to_the_published_counts(written, capsys):
    assert main(["check", str(written)]) == 0
    out = capsys.readouterr().out
    assert "train         2       3452         2" in out and "val           1        740         1" in out
    assert "train         2       8498         2" in out and "test          1       1554         1" in out
    assert out.count("0 problem(s)") == 2 and len(out.splitlines()) < 24


def test_problems_are_counted_and_listed(trees, capsys):
    train = sorted(trees.glob("Single-source/s4_data/gt_masks/train/*/*/*.png"))
    Image.fromarray(np.full((224, 224), 38, np.uint8)).save(train[0])
    wav = next(trees.glob("Single-source/s4_data/audio_wav/val/*/*.wav"))
    wav.write_bytes(wav.read_bytes()[:1000])
    report = check(trees, "s4", RowSettings())
    assert (report.clips, report.complete) == (
        {"train": 2, "val": 1, "test": 0},
        {"train": 1, "val": 0, "test": 0},
    )
    assert {problem.path for problem in report.problems} == {str(train[0]), str(wav)}
    assert len(check(trees, "s4", RowSettings(), read=False).problems) == 1
    assert main(["check", str(trees), "--only", "s4", "--num-proc", "2"]) == 1
    out = capsys.readouterr().out
    assert (
        f"problem: {train[0]}: Expected a mask with one channel of the gray values 0 and 255, or 0 and 1, got" in out
        and "gray values 38" in out
        and "2 problem(s)" in out
    )


def test_long_lists_are_shortened_without_all(trees, capsys):
    for path in trees.glob("AVSBench_semantic/v*/*/*/*"):
        path.write_bytes(b"")
    main(["check", str(trees), "--only", "avss", "--quick"])
    cut = capsys.readouterr().out
    main(["check", str(trees), "--only", "avss", "--quick", "--all"])
    complete = capsys.readouterr().out
    assert cut.count("problem: ") == 20 and "more problems, list them with --all" in cut
    assert complete.count("problem: ") > 20 and "more problems" not in complete


def test_notes_report_peculiarities(trees):
    table = trees / "AVSBench_semantic" / "metadata.csv"
    header, first, second, third = table.read_text().splitlines()
    first = first.replace(first.split(",")[4], "h orse")
    second = second.replace(f",{second.split(',')[4]},", ",background,")
    third = third.replace(third.split(",")[0] + ",", first.split(",")[0] + ",", 1)
    table.write_text("\n".join([header, first, second, third]))
    report = check(trees, "avss", RowSettings())
    assert report.problems == []
    assert report.notes == [
        "1 row(s) with a_obj 'h orse', read as 'horse'",
        "1 row(s) with a_obj 'background', which names no visible class",
        "1 video(s) in more than one split (22 in the published AVSS table)",
        "1 clip(s) whose labels are mostly of classes that a_obj does not list",
    ]


def test_notes_report_short_audio(trees):
    wav = next(trees.glob("Single-source/s4_data/audio_wav/val/*/*.wav"))
    with wave.open(str(wav), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 16000 * 3))
    report = check(trees, "s4", RowSettings())
    assert report.problems == [] and report.complete["val"] == 1
    (note,) = report.notes
    assert note.startswith("1 clip(s) whose audio ends more than 1.25 s before the last frame")
    wav.write_bytes(b"no wav")
    report = check(trees, "s4", RowSettings(log_mel=True), read=False)
    assert (
        report.notes
        == ["1 clip(s) without a usable wav, which their log-mel features replace"] * report.complete["val"]
    )


@pytest.mark.parametrize("read", [True, False])
def test_notes_report_splits_without_annotations(tmp_path, read):
    frames = [np.zeros((48, 64, 3), np.uint8)] * 8
    write_video(tmp_path / "a.mp4", frames, 8, np.zeros(16000, np.float32), 16000)
    write_video(tmp_path / "silent.mp4", frames, 8)
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "masks" / "0.png")
    table = tmp_path / "clips.csv"
    table.write_text("video,split,masks\na.mp4,train,masks\nsilent.mp4,test,\n")
    report = check(tmp_path, "folder", RowSettings(missing_audio="silence"), read=read)
    # A video without audio is a clip in which nothing sounds.
    assert report.notes == [] and report.problems == []
    table.write_text("video,split,masks\na.mp4,val,\n")
    assert check(tmp_path, "folder", RowSettings(), read=read).notes == [
        "no frame of split 'val' is annotated; neither training nor evaluation can use it"
    ]


def test_subsets_are_checked_alone(trees, capsys):
    assert main(["check", str(trees), "--only", "avss", "--subsets", "v1m", "v2"]) == 0
    assert "train         1       5046         1" in capsys.readouterr().out


def test_faults_of_table_and_files_are_in_one_report(trees):
    table = trees / "Single-source" / "s4_meta_data.csv"
    table.write_text(table.read_text() + "x,0,race-car,train\n")
    wav = next(trees.glob("Single-source/s4_data/audio_wav/val/*/*.wav"))
    wav.write_bytes(b"")
    problems = check(trees, "s4", RowSettings()).problems
    assert [problem.path for problem in problems] == [f"{table.resolve()}, line 5", str(wav)]


def test_colors_that_contradict_indices_are_found(trees):
    path = next(trees.glob("AVSBench_semantic/v1m/*/labels_rgb/1.png"))
    Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    (problem,) = check(trees, "avss", RowSettings()).problems
    assert problem.path.endswith("labels_semantic/1.png") and "differ from the colors" in problem.problem


def test_unusable_tables_and_empty_folders_have_different_exit_codes(trees, tmp_path, capsys):
    (trees / "Single-source" / "s4_meta_data.csv").write_bytes(b"")
    assert main(["check", str(trees)]) == 1
    assert "s4_meta_data.csv: Empty table" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert "nowhere not found" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    assert main(["check", str(tmp_path / "nothing")]) == 2
    assert "No table of clips found" in capsys.readouterr().err
