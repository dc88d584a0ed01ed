"""Tests of src/pcmanet/cli/segment.py: the demo, archives in processes that are killed, and a job on a Ray cluster."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from command_runs import (
    end_process,
    finish_process,
    piped_input,
    save_checkpoint,
    start_process,
    wait_until,
    write_clip,
)
from datasets import load_dataset
from isolated_python import WITHOUT_EDITABLE_INSTALL
from PIL import Image
from written_trees import write_trees

from modeling_pcmanet import PCMANetConfig
from modeling_pcmanet.media_pcmanet import read_audio
from pcmanet.cli import segment
from pcmanet.cli.main import main
from pcmanet.cli.results import SCHEMA, SETTINGS, SHARDS, RecordedResults


pytestmark = pytest.mark.usefixtures("checkpoints_are_loaded_once")

ROOT = Path(__file__).parents[1]
FOUND = ["dog", "rooster", "helicopter"]


def assert_demo_results(output: Path, printed: str, folder: Path = Path()) -> None:
    assert sorted(path.name for path in (folder / output / "real_world").iterdir()) == [
        "contact_sheet.png",
        "masks",
        "overlay.mp4",
        "segments.jsonl",
        "video.json",
    ]
    assert all(name in printed for name in FOUND)
    assert [line.split()[-1] for line in printed.splitlines()[-3:]] == [
        str(output / "real_world" / name) for name in ("overlay.mp4", "masks", "contact_sheet.png")
    ]


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["demo", "--output", str(tmp_path / "demo_output")]) == 0
    printed = capsys.readouterr()
    assert_demo_results(tmp_path / "demo_output", printed.out)
    assert "model: knows 17 classes of the real world: person, dog, cat" in printed.err


@pytest.mark.parametrize("name", ["other.mp4", "real_world.mp4"])
def test_demo_removes_no_results_of_other_videos(here: Path, name: str, capsys: pytest.CaptureFixture):
    write_clip(here / name, seconds=1)
    assert main(command("--format", "rle", videos=name)) == 0
    capsys.readouterr()
    assert main(["demo", "--output", "out"]) == 2
    assert "out contains results of videos other than " in capsys.readouterr().err
    assert (here / "out" / Path(name).stem / "segments.jsonl").is_file()


@pytest.mark.slow
def test_demo_from_a_wheel(tmp_path: Path):
    """The unpacked wheel, without access to the repository."""
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    work.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, tmp_path, source], check=True)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)

    code = (
        f"{WITHOUT_EDITABLE_INSTALL}"
        "sys.path.insert(0, sys.argv[1])\n"
        "import pcmanet.cli.main as command\n"
        "assert command.__file__.startswith(sys.argv[1]), command.__file__\n"
        "sys.exit(command.main(['demo']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_demo_results(Path("pcmanet_demo"), done.stdout, work)


def test_clips_of_avsbench(tmp_path: Path, capsys: pytest.CaptureFixture):
    root, model = write_trees(tmp_path, ms3={"test": 2}), str(save_checkpoint(tmp_path / "model"))
    words = ["segment", "--data", str(root), "--split", "test", "--model", model, "--output", str(tmp_path / "out")]
    assert main([*words, "--contact-sheet"]) == 0
    clips = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert len(clips) == 2 and all((clip / "contact_sheet.png").is_file() for clip in clips)
    times = [json.loads(line)["timestamp"] for line in (clips[0] / "segments.jsonl").read_text().splitlines()]
    assert times == [0.9375, 1.9375, 2.9375, 3.9375, 4.9375]
    before = {path: path.stat().st_mtime_ns for path in clips[0].rglob("*")}
    assert main([*words, "--contact-sheet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in clips[0].rglob("*")} == before
    assert main([*words, "--name", "s4"]) == 2
    assert "contains ms3, not s4" in capsys.readouterr().err


def test_data_type_is_chosen_printed_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    clip, out = write_clip(tmp_path / "clip.mp4", 2), tmp_path / "out"
    model = save_checkpoint(tmp_path / "model", bfloat16_agreement=0.995)
    words = ["segment", str(clip), "--model", str(model), "--device", "cpu", "--output", str(out), "--format", "rle"]
    assert main(words) == 0
    reason = "avx512_bf16, masks agree with float32 by mIoU 0.995"
    assert f"data type: bfloat16 ({reason})" in capsys.readouterr().err
    assert json.loads((out / SETTINGS).read_text())["settings"]["dtype"] == "bfloat16"

    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # as on another machine
    assert main(words) == 2
    assert "dtype is 'float32', was 'bfloat16'" in capsys.readouterr().err
    assert main([*words, "--dtype", "bfloat16"]) == 0
    assert "data type: bfloat16 (as requested)" in capsys.readouterr().err


def recorded(path: Path, *found: tuple[str, ...]) -> RecordedResults:
    """Write one network frame per argument; every mask covers a quarter of the frame."""
    mask = Image.fromarray(np.kron([[1, 0], [0, 0]], np.ones((2, 3))).astype(np.uint8) * 255)
    results = RecordedResults(path / "segments.jsonl")
    for number, labels in enumerate(found):
        segments = [{"label": label, "score": 0.5, "mask": mask} for label in labels]
        results.add({"timestamp": float(number), "segments": segments}, (4, 6))
    return results


def test_summary(tmp_path: Path):
    names = PCMANetConfig.from_preset("tiny", id2label={0: "background", 1: "dog", 2: "cat"})
    results = recorded(tmp_path, ("dog",), (), ("cat", "dog"))
    assert segment._summary("a.mp4", results, names) == "a.mp4: dog 2, cat 1 (3 frames)"
    (tmp_path / "b").mkdir()
    assert (
        segment._summary("b.mp4", recorded(tmp_path / "b", (), ()), names) == "b.mp4: no sounding objects (2 frames)"
    )


def test_summary_of_sounds_of_other_classes(tmp_path: Path):
    results = RecordedResults(tmp_path / "segments.jsonl")
    for number, labels in enumerate((("dog", "rain"), ("rain", "drums"), ())):
        heard = [{"label": label, "score": 4.0} for label in labels]
        results.add({"timestamp": float(number), "segments": [], "heard": heard}, (4, 6))
    names = PCMANetConfig.from_preset("tiny", id2label={0: "background", 1: "dog", 2: "cat"})
    expected = "a.mp4: no sounding objects (3 frames); heard, but not among this model's classes: rain 2, drums 1"
    assert segment._summary("a.mp4", results, names) == expected
    assert segment._table(results, names).splitlines()[-1] == expected.partition("; ")[2]
    binary = PCMANetConfig.from_preset("tiny")
    assert segment._summary("a.mp4", results, binary) == "a.mp4: no sounding objects (3 frames)"


def test_table(tmp_path: Path):
    results, config = recorded(tmp_path, ("dog", "a very long label"), ()), PCMANetConfig.from_preset("tiny")
    assert segment._table(results, config).splitlines() == [
        " seconds  label              score   area",
        "    0.00  dog                 0.50  25.0%",
        "          a very long label   0.50  25.0%",
        "    1.00  -",
    ]


def test_table_of_a_long_video_is_cut(tmp_path: Path):
    results = recorded(tmp_path, *[()] * (segment.TABLE_FRAMES + 7))
    lines = segment._table(results, PCMANetConfig.from_preset("tiny")).splitlines()
    assert len(lines) == segment.TABLE_FRAMES + 2
    assert lines[-1].strip() == "...  and 7 more frames"


MORE = ("--frames-per-second", "4")  # more work than ten runs finish before they are killed
ORDER = [("video", "ascending"), ("frame", "ascending"), ("label", "ascending")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a checkpoint and a folder of clips, two of which cannot be segmented."""
    folder = tmp_path_factory.mktemp("archive")
    save_checkpoint(folder / "model")
    for number in range(6):
        write_clip(folder / "clips" / f"day_{number % 2}" / f"{number}.mp4", seconds=1 + number % 3, seed=number)
    write_clip(folder / "clips" / "silent.mp4", silent=True)
    (folder / "clips" / "broken.mp4").write_bytes(b"not a video")
    return folder


@pytest.fixture
def here(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with links to the checkpoint and the clips."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "clips"):
        (tmp_path / name).symlink_to(archive / name)
    return tmp_path


def command(*options: str, output: str = "out", videos: str = "clips") -> list[str]:
    return ["segment", videos, "--model", "model", "--output", output, "--format", "parquet", *options]


def rows(folder: Path) -> pyarrow.Table:
    """Return all rows of the shards in a fixed order; the folder must contain no temporary files."""
    names = {path.name for path in folder.iterdir()}
    paths = sorted(folder.glob(SHARDS))
    assert names - {path.name for path in paths} == {SETTINGS, "README.md", ".pcmanet.lock"}
    tables = [pyarrow.parquet.read_table(path) for path in paths]
    videos = [video for table in tables for video in set(table["video"].to_pylist())]
    assert len(videos) == len(set(videos))
    return pyarrow.concat_tables(tables).sort_by(ORDER)


def published(folder: Path) -> int:
    return len(list(folder.glob(SHARDS)))


class TestRows:
    def test_rows_of_all_videos(self, here: Path, capsys: pytest.CaptureFixture):
        assert main(command()) == 1
        table = rows(here / "out")
        assert table.schema.equals(SCHEMA)
        frames = {}
        for row in table.to_pylist():
            frames.setdefault(row["video"], set()).add(row["frame"])
        expected = {f"clips/day_{n % 2}/{n}.mp4": set(range(1 + n % 3)) for n in range(6)}
        assert frames == expected | {"clips/broken.mp4": {None}, "clips/silent.mp4": {None}}

        errors = {row["video"]: row["error"] for row in table.to_pylist() if row["error"]}
        assert "cannot be read as audio or video" in errors["clips/broken.mp4"]
        assert "--audio" in errors["clips/silent.mp4"]
        captured = capsys.readouterr()
        assert "6 of 8 videos segmented" in captured.out
        assert "failed: clips/silent.mp4: " in captured.err

    def test_datasets_reads_shards_next_to_images(self, here: Path):
        assert main(command("--overlay", "--contact-sheet", videos="clips/day_0")) == 0
        assert (here / "out" / "2" / "overlay.mp4").is_file()
        found = sorted(path.name for path in (here / "out" / "2").iterdir())
        assert found == ["contact_sheet.png", "overlay.mp4", "video.json"]
        data = load_dataset(str(here / "out"), split="train", cache_dir=here / "cache")
        assert data.column_names == SCHEMA.names
        assert set(data["video"]) == {f"clips/day_0/{number}.mp4" for number in (0, 2, 4)}
        assert data[0]["segmentation"]["size"] == [48, 64]

    def test_finished_videos_are_skipped_and_new_ones_added(self, here: Path, capsys: pytest.CaptureFixture):
        assert main(command(videos="clips/day_0")) == 0
        (before,) = (here / "out").glob(SHARDS)
        stamp = before.stat().st_mtime_ns
        capsys.readouterr()
        (here / "list.txt").write_text(
            "# some\nclips/day_0/2.mp4\n\nclips/day_1/1.mp4\nclips/day_1/1.mp4\nnowhere.mp4\n"
        )
        assert main(command(videos="list.txt")) == 1
        assert before.stat().st_mtime_ns == stamp
        out = capsys.readouterr()
        assert "day_1/1.mp4: sounding" in out.out
        assert "day_0/2.mp4: " not in out.out
        assert "2 of 3 videos segmented" in out.out
        assert "failed: nowhere.mp4: " in out.err

    def test_name_that_is_not_utf8(self, here: Path, capsys: pytest.CaptureFixture):
        odd = Path(os.fsdecode(b"odd/caf\xe9"))
        write_clip(here / odd / "clip.mp4", seconds=1)
        write_clip(here / "odd" / "silent \n.mp4", seconds=1, silent=True)
        for _ in range(2):
            assert main(command(videos="odd")) == 1
            captured = capsys.readouterr()
            assert "1 of 2 videos segmented" in captured.out
            assert "silent \n" not in captured.err
        assert set(rows(here / "out")["video"].to_pylist()) == {"odd/caf\\xe9/clip.mp4", "odd/silent \n.mp4"}
        assert main(command("--format", "png", output="images", videos="odd")) == 1
        assert (here / "images" / "clip" / "masks").is_dir()

    def test_retry_failed(self, here: Path, capsys: pytest.CaptureFixture):
        (here / "late").mkdir()
        write_clip(here / "late" / "good.mp4", seconds=1)
        (here / "late" / "late.mp4").write_bytes(b"not yet")
        assert main(command(videos="late")) == 1
        assert "failed: late/late.mp4" in "".join(capsys.readouterr())
        assert main(command(videos="late")) == 1
        captured = "".join(capsys.readouterr())
        assert "failed: late/late.mp4" not in captured
        assert "1 failed, see the column `error`; --retry-failed processes them again" in captured
        assert main(command("--retry-failed", videos="late")) == 1
        assert "failed: late/late.mp4" in "".join(capsys.readouterr())
        write_clip(here / "late" / "late.mp4", seconds=1, seed=3)  # a changed file is tried again anyway
        assert main(command(videos="late")) == 0
        assert rows(here / "out")["error"].null_count == rows(here / "out").num_rows

    def test_rows_of_a_dataset(self, here: Path):
        from datasets import Dataset, Features, Value, Video

        (here / "data").mkdir()
        features = Features({"video": {"path": Value("string"), "bytes": Value("binary")}, "id": Value("string")})
        clips = [(here / "clips" / "day_0" / f"{number}.mp4").read_bytes() for number in (0, 2)]
        cells = [{"path": None, "bytes": content} for content in clips]
        data = Dataset.from_dict({"video": cells, "id": ["zero", "two"]}, features=features)
        data.to_parquet(here / "data" / "train.parquet")
        data.cast_column("video", Video(decode=False)).save_to_disk(here / "saved")
        for folder in ("data", "saved"):
            options = ["--name-column", "id", "--model", "model", "--format", "parquet"]
            assert main(["segment", "--data", folder, *options, "--output", f"out_{folder}"]) == 0
            assert set(rows(here / f"out_{folder}")["video"].to_pylist()) == {"zero", "two"}
        assert main(command("--shard-minutes", "0", output="plain", videos="clips/day_0")) == 0
        columns = ["video", "origin", "content"]
        wanted = rows(here / "plain").filter(pyarrow.compute.field("video") == "clips/day_0/2.mp4").drop(columns)
        got = rows(here / "out_saved").filter(pyarrow.compute.field("video") == "two").drop(columns)
        assert got.equals(wanted)


class TestVideosAtOnce:
    """Two videos wait for each other, which they can only do if both are being segmented."""

    @pytest.fixture
    def two(self, here: Path) -> str:
        (here / "two.txt").write_text("clips/day_0/0.mp4\nclips/day_1/1.mp4\n")
        return "two.txt"

    def test_they_divide_the_threads(self, two: str, here: Path, monkeypatch: pytest.MonkeyPatch):
        record, both, threads = segment.record, threading.Barrier(2, timeout=100), []

        def record_together(*arguments: Any) -> None:
            both.wait()
            threads.append(torch.get_num_threads())
            record(*arguments)

        monkeypatch.setattr(segment, "record", record_together)
        before = torch.get_num_threads()
        torch.set_num_threads(4)
        try:
            assert main(command(videos=two)) == 0
            assert torch.get_num_threads() == 4
        finally:
            torch.set_num_threads(before)
        assert threads == [2, 2]
        assert set(rows(here / "out")["video"].to_pylist()) == {"clips/day_0/0.mp4", "clips/day_1/1.mp4"}

    def test_a_pipe_that_fills_the_disk_of_the_output_ends_the_run(
        self, here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ):
        def fill(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(segment, "copy_pipe", fill)
        with piped_input(here / "clips" / "day_0" / "0.mp4"):
            assert main(command(videos="/dev/stdin")) == 2
        error = capsys.readouterr().err
        assert "No space left on the disk of out. Finished results" in error
        assert "TMPDIR" not in error

    def test_an_error_of_the_system_ends_both(self, two: str, here: Path, monkeypatch: pytest.MonkeyPatch):
        both = threading.Barrier(2, timeout=100)

        def record_forever(*arguments: Any) -> None:
            if both.wait() == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            while True:
                time.sleep(0.01)
                arguments[-1](0.0)  # the progress, which ends the video

        monkeypatch.setattr(segment, "record", record_forever)
        assert main(command(videos=two)) == 2
        # Neither shards nor temporary files.
        assert {path.name for path in (here / "out").iterdir()} == {SETTINGS, "README.md", ".pcmanet.lock"}


class TestRestart:
    @pytest.mark.parametrize("form", ["png", "parquet"])
    def test_replaced_file_is_segmented_again(self, here: Path, form: str, capsys: pytest.CaptureFixture):
        clips, options = here / "some", ["--format", form]
        for seed in (1, 2):
            write_clip(clips / f"{seed}.mp4", seconds=2, seed=seed)
        assert main(command(*options, videos="some")) == 0
        assert main(command(*options, videos="some")) == 0
        assert "changed" not in capsys.readouterr().err
        write_clip(clips / "1.mp4", seconds=3, seed=3)
        assert main(command(*options, videos="some")) == 0
        captured = capsys.readouterr()
        assert "some/1.mp4 has changed since it was segmented; it is segmented again" in captured.err
        assert "some/2.mp4" not in captured.out + captured.err
        write_clip(clips / "again.mp4", seconds=3, seed=3)
        assert main(command(*options, output="fresh", videos="some/again.mp4")) == 0
        if form == "png":
            found, expected = (here / folder / "segments.jsonl" for folder in ("out/1", "fresh/again"))
            assert found.read_text() == expected.read_text()
        else:
            counts = rows(here / "out")["video"].value_counts().to_pylist()
            assert {row["values"]: row["counts"] for row in counts} == {"some/1.mp4": 3, "some/2.mp4": 2}

    def test_other_audio_is_other_results(self, here: Path, capsys: pytest.CaptureFixture):
        write_clip(here / "silent.mp4", seconds=1, silent=True)
        write_clip(here / "a.mp4", seconds=1, seed=1)
        for seed in (1, 2):
            write_clip(here / "a.mp4", seconds=1, seed=seed)
            assert main(command("--audio", "a.mp4", videos="silent.mp4")) == 0
            assert ("silent.mp4 has changed" in capsys.readouterr().err) == (seed == 2)
        assert main(command("--audio", "a.mp4", videos="silent.mp4")) == 0
        assert "has changed" not in capsys.readouterr().err

    def test_standard_input(self, here: Path, capsys: pytest.CaptureFixture):
        for number in (0, 1):
            with piped_input(here / "clips" / f"day_{number}" / f"{number}.mp4"):
                assert main(command("--format", "png", "--overlay", videos="/dev/stdin")) == 0
            assert len((here / "out" / "stdin" / "segments.jsonl").read_text().splitlines()) == 1 + number % 3
        assert "/dev/stdin has changed since" in capsys.readouterr().err
        with piped_input(here / "clips" / "day_1" / "1.mp4"):
            assert main(command("--overlay", "--audio", "/dev/stdin", output="heard", videos="clips/day_0/2.mp4")) == 0
        played, given = here / "heard" / "2" / "overlay.mp4", here / "clips" / "day_1" / "1.mp4"
        np.testing.assert_array_equal(read_audio(played)[0], read_audio(given)[0])

    def test_another_video_of_the_same_name_is_refused(
        self, here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ):
        for day in (1, 2):
            write_clip(here / f"day_{day}" / "videos" / "0.mp4", seconds=day)
        options = ["--model", str(here / "model"), "--output", str(here / "out"), "--format", "parquet"]
        monkeypatch.chdir(here / "day_1")
        assert main(["segment", "videos", *options]) == 0
        first = rows(here / "out")
        monkeypatch.chdir(here / "day_2")
        assert main(["segment", "videos", *options]) == 2
        assert "results of another video that was also given as videos/0.mp4. Give abs" in capsys.readouterr().err
        assert rows(here / "out").equals(first)
        assert main(["segment", str(here / "day_2" / "videos"), *options]) == 0
        assert len(set(rows(here / "out")["video"].to_pylist())) == 2

    def test_moved_archive_and_videos_are_resumed(
        self, here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ):
        write_clip(here / "old" / "some" / "1.mp4", seconds=1)
        (here / "old" / "some" / "2.mp4").write_bytes(b"not a video")
        words = [*command(videos="some"), "--model", str(here / "model")]
        monkeypatch.chdir(here / "old")
        assert main(words) == 1
        (here / "old").rename(here / "new")
        monkeypatch.chdir(here / "new")
        capsys.readouterr()
        assert main(words) == 1
        captured = "".join(capsys.readouterr())
        assert "failed: some/2.mp4" in captured and "some/1.mp4" not in captured
        assert rows(here / "new" / "out")["video"].to_pylist() == ["some/1.mp4", "some/2.mp4"]

    @pytest.mark.parametrize(
        "written", ["./clips/day_0/0.mp4", "{here}/clips/day_0/0.mp4", "file://{here}/clips/day_0/0.mp4"]
    )
    def test_finished_video_is_known_however_its_path_is_written(self, here: Path, written: str):
        assert main(command(videos="clips/day_0/0.mp4")) == 0
        first = rows(here / "out")
        assert main(command(videos=written.format(here=here))) == 0
        assert rows(here / "out").equals(first)

    def test_row_without_a_video_does_not_prevent_resuming(self, here: Path, capsys: pytest.CaptureFixture):
        from datasets import Dataset

        videos = [str(here / "clips" / "day_0" / "0.mp4"), None]
        Dataset.from_dict({"video": videos, "name": ["x", "y"]}).save_to_disk(here / "data")
        words = ["segment", "--data", "data", "--name-column", "name", *command()[2:]]
        for _ in range(2):
            assert main(words) == 1
            assert "1 of 2 videos segmented" in capsys.readouterr().out
        assert {row["video"]: row["error"] is None for row in rows(here / "out").to_pylist()} == {
            "x": True,
            "y": False,
        }

    def test_other_settings_are_refused(self, here: Path, capsys: pytest.CaptureFixture):
        assert main(command(videos="clips/day_0/0.mp4")) == 0
        assert main(command("--threshold", "0.3", videos="clips/day_0/0.mp4")) == 2
        assert "threshold is 0.3, was not set" in capsys.readouterr().err
        assert main(command("--threshold", "0.3", "--overwrite", videos="clips/day_1/1.mp4")) == 0
        assert set(rows(here / "out")["video"].to_pylist()) == {"clips/day_1/1.mp4"}
        assert json.loads((here / "out" / SETTINGS).read_text())["settings"]["threshold"] == 0.3

    def test_two_kills(self, here: Path):
        """Two kills at random times; the final rows are those of one run."""
        assert main(command(output="uninterrupted")) == 1
        delays = random.Random(7)
        for kill in (1, 2):
            process = start_process(lambda: main(command("--shard-minutes", "0")), here / "log")
            wait_until(lambda wanted=2 * kill: published(here / "out") >= wanted, process, here / "log")
            time.sleep(delays.uniform(0, 0.05))
            end_process(process)
            assert finish_process(process) == -signal.SIGKILL
        assert finish_process(start_process(lambda: main(command("--shard-minutes", "0")), here / "log")) == 1
        assert rows(here / "out").equals(rows(here / "uninterrupted"))

    def test_only_one_run_at_a_time(self, here: Path, capsys: pytest.CaptureFixture):
        import fcntl

        assert main(command(videos="clips/day_0/0.mp4")) == 0
        with (here / "out" / ".pcmanet.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            assert main(command(videos="clips/day_1/1.mp4")) == 2
        assert "Another pcmanet is writing to out" in capsys.readouterr().err

    @pytest.mark.parametrize("wanted, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_interrupted_run_keeps_finished_videos(self, here: Path, wanted: signal.Signals, code: int):
        """Rows of finished videos are published, and the message has the command to resume."""
        log = here / "log"
        process = start_process(lambda: main(command("--shard-minutes", "100")), log)
        wait_until(lambda: log.is_file() and log.read_text().count(" frames)") >= 2, process, log)
        os.kill(process, wanted)
        assert finish_process(process) == code
        assert "To resume: pcmanet " in log.read_text()
        assert "Traceback" not in log.read_text()
        done = rows(here / "out")["video"].to_pylist()
        assert 2 <= len(set(done)) < 8
        assert main(command()) == 1
        assert len(set(rows(here / "out")["video"].to_pylist())) == 8

    def test_finished_videos_are_published_before_a_video_that_is_blocked_ends(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """As by a server that does not respond: a batch system kills the process before it does."""
        (here / "list.txt").write_text("clips/day_0/0.mp4\nclips/day_0/2.mp4\nclips/day_1/1.mp4\n")
        record, log, end = segment.record, here / "log", time.monotonic() + 20

        def block_the_last(segmenter: Any, reader: Any, *arguments: Any) -> None:
            if str(reader.name).endswith("1.mp4"):
                while not published(here / "out") and time.monotonic() < end:
                    time.sleep(0.01)
                (here / f"published_{published(here / 'out')}").touch()
            record(segmenter, reader, *arguments)

        monkeypatch.setattr(segment, "record", block_the_last)
        process = start_process(lambda: main(command(videos="list.txt")), log)
        wait_until(lambda: log.is_file() and log.read_text().count(" frames)") >= 2, process, log)
        os.kill(process, signal.SIGTERM)
        assert finish_process(process) == 143
        assert (here / "published_1").exists()
        assert set(rows(here / "out")["video"].to_pylist()) == {"clips/day_0/0.mp4", "clips/day_0/2.mp4"}

    def test_pipe_without_an_end_is_interrupted(self, here: Path):
        reader, writer = os.pipe()
        words = command(videos="/dev/stdin")
        process = start_process(lambda: os.close(writer) or os.dup2(reader, 0) or main(words), here / "log")
        wait_until(lambda: any((here / "out").glob(".pcmanet-*/piped_video")), process, here / "log")
        closing = threading.Timer(20, os.close, (writer,))
        closing.start()
        os.kill(process, signal.SIGTERM)
        assert finish_process(process) == 143
        closing.cancel()
        os.close(writer)  # an error if the pipe had to be closed
        os.close(reader)


@pytest.mark.slow
class TestProcesses:
    """Processes of torchrun, any of which can be killed."""

    def start(self, processes: int, log: Path) -> subprocess.Popen:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        module = ["-m", "pcmanet", *command("--shard-minutes", "0", videos="many"), *MORE]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        with log.open("ab") as file:
            return subprocess.Popen([*launcher, *module], stdout=file, stderr=file, env=environment)

    def processes(self, launcher: subprocess.Popen) -> list[int]:
        """Return the launcher and the processes that it started."""
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        return [launcher.pid, *map(int, children)]

    def wait_for_orphans(self, processes: list[int]) -> None:
        """End the processes that a killed launcher left, because no new run can begin while they work."""
        for process in processes:
            if Path(f"/proc/{process}").exists():
                end_process(process)
        while any(is_alive(process) for process in processes):
            time.sleep(0.05)

    def test_ten_kills(self, here: Path):
        """Any process at any time; the next run has another number of processes."""
        for copy in range(5):
            shutil.copytree(here / "clips", here / "many" / str(copy))
        assert main([*command(output="uninterrupted", videos="many"), *MORE]) == 1
        delays, log, done = random.Random(11), here / "log", []
        for kill in range(10):
            log.write_text("")
            launcher = self.start((2, 1, 3)[kill % 3], log)
            # After as many more videos as a slow machine needs to show progress, or none.
            wanted = published(here / "out") + delays.choice((0, 1, 2))
            wait_until_started(log, launcher)
            while published(here / "out") < wanted and launcher.poll() is None:
                time.sleep(0.01)
            time.sleep(delays.uniform(0, 0.5))
            if launcher.poll() is not None:
                break  # a fast machine has segmented all videos before the tenth kill
            family = self.processes(launcher)
            end_process(delays.choice(family))
            self.wait_for_orphans(family)
            launcher.wait()
            done.append(published(here / "out"))
        assert done == sorted(done)
        assert done[-1] > done[0]
        assert self.start(2, log).wait() == 1
        assert rows(here / "out").equals(rows(here / "uninterrupted"))
        assert "30 of 40 videos segmented" in log.read_text()


def wait_until_started(log: Path, launcher: subprocess.Popen) -> None:
    """Wait until videos are segmented."""
    while "segmenting" not in log.read_text():
        assert launcher.poll() is None, log.read_text()
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


VIDEOS = 9


@pytest.fixture
def ray_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a checkpoint and a folder of clips."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "model")
    for number in range(VIDEOS - 1):
        write_clip(tmp_path / "clips" / f"{number}.mp4", seconds=1 + number % 2, seed=number)
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"not a video")
    return tmp_path


def ray_command(output: str, *options: str) -> list[str]:
    return ["segment", "clips", "--model", "model", "--output", output, *options]


def test_without_ray(ray_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(ray_command("out", "--format", "parquet", "--ray", "auto")) == 2
    assert (
        'error: --ray requires Ray Data, but ray is not installed. Install it with pip install "pcmanet[archive]".'
        in (capsys.readouterr().err)
    )
    assert not (ray_folder / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_folder")
def test_missing_cluster(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(ray_command("out", "--format", "parquet", "--ray", "auto")) == 2
    assert "No Ray cluster found at auto" in capsys.readouterr().err


@pytest.mark.slow
def test_two_nodes(ray_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Two nodes of one core each give the rows of one process, also after a shard is lost, and folders."""
    # Ray reads this when it is imported. By default its workers have the lowest priority and wait for every other test.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    assert main(ray_command("uninterrupted", "--format", "parquet")) == 1
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        options = ("--format", "parquet", "--ray", cluster.address)
        assert main(ray_command("out", *options)) == 1
        assert rows(ray_folder / "out").equals(rows(ray_folder / "uninterrupted"))
        assert published(ray_folder / "out") >= 2
        assert "failed: clips/broken.mp4: " in capsys.readouterr().err

        next((ray_folder / "out").glob(SHARDS)).unlink()
        assert main(ray_command("out", *options)) == 1
        assert rows(ray_folder / "out").equals(rows(ray_folder / "uninterrupted"))

        assert main(ray_command("folders", "--overlay", "--ray", cluster.address, "--ray-workers", "2")) == 1
        made = sorted(path.name for path in (ray_folder / "folders").iterdir() if path.is_dir())
        assert made == [str(number) for number in range(VIDEOS - 1)]
        assert (ray_folder / "folders" / "3" / "overlay.mp4").is_file()
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()
