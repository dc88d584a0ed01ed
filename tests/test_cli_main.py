"""Tests of src/pcmanet/cli/main.py and arguments.py: the command as a user runs it, on real files with a tiny model."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_runs import (
    RATE,
    SIZE,
    audio,
    finish_process,
    frames,
    save_checkpoint,
    start_process,
    wait_until,
    write_clip,
)
from odd_media import Track, begin_late, onset, write_odd_video
from PIL import Image

import pcmanet
from modeling_pcmanet.media_pcmanet import read_audio, read_media
from modeling_pcmanet.media_writing_pcmanet import write_audio, write_video
from pcmanet.cli import arguments
from pcmanet.cli.main import COMMANDS, main
from pcmanet.cli.results import decode_mask
from pcmanet.dataset_scripts.avsbench.layouts import NAMES
from pcmanet.dataset_scripts.avsbench.masks import LABEL_NOISE_RULES
from pcmanet.dataset_scripts.evaluation import NEGATIVES


pytestmark = pytest.mark.usefixtures("checkpoints_are_loaded_once")

RESULTS = ["contact_sheet.png", "masks", "overlay.mp4", "segments.jsonl", "video.json"]
IMAGES = ("--overlay", "--contact-sheet")

DATA_OPTIONS = ("--split", "--name", "--column", "--audio-column", "--name-column")

Run = Callable[..., int]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a clip of 3 seconds and a silent one."""
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4")
    write_clip(tmp_path / "silent.mp4", silent=True)
    return tmp_path


@pytest.fixture
def run(checkpoint: Path) -> Run:
    """Run `pcmanet segment` in this process and return the exit code."""

    def segment(*arguments: str, model: str = str(checkpoint)) -> int:
        try:
            return main(["segment", *arguments, "--model", model])
        except SystemExit as exit_:
            return exit_.code

    return segment


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


class TestResults:
    def test_table_and_files(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("clip.mp4", *IMAGES) == 0
        lines = capsys.readouterr().out.splitlines()
        output = folder / "segmented" / "clip"
        assert names(folder) == ["clip.mp4", "segmented", "silent.mp4"]
        assert names(folder / "segmented") == ["clip", "pcmanet_settings.json"]
        assert names(output) == RESULTS
        assert names(output / "masks") == [f"000{number}_at_{number}.900s.png" for number in range(3)]

        records = [json.loads(line) for line in (output / "segments.jsonl").read_text().splitlines()]
        assert lines[0].split() == ["seconds", "label", "score", "area"]
        for number, line in enumerate(lines[1:4]):
            second, label, score, area = line.split()
            with Image.open(output / "masks" / f"000{number}_at_{number}.900s.png") as mask:
                assert area == f"{np.asarray(mask).mean() / 255:.1%}"
                assert mask.size == SIZE
                (found,) = records[number]["segments"]
                assert decode_mask(found["segmentation"]).tobytes() == mask.tobytes()
            assert (second, label, score) == (f"{number}.90", "sounding", f"{found['score']:.2f}")
            assert 0.5 < float(score) <= 1
        assert lines[-1] == "1 of 1 videos segmented, results in segmented"

        overlay, original = read_media(output / "overlay.mp4"), read_media("clip.mp4")
        assert overlay.frames.shape == original.frames.shape
        assert (overlay.waveform == original.waveform).all()
        with Image.open(output / "contact_sheet.png") as sheet:
            assert sheet.width > 1000

    def test_only_the_requested_files(self, run: Run, folder: Path):
        assert run("clip.mp4", "--format", "rle") == 0
        assert names(folder / "segmented" / "clip") == ["segments.jsonl", "video.json"]

    @pytest.mark.usefixtures("folder")
    def test_an_earlier_result_is_said(self, run: Run, capsys: pytest.CaptureFixture):
        said = []
        for _ in range(2):
            assert run("clip.mp4", "--format", "rle") == 0
            said.append("clip.mp4 was segmented by an earlier run; --overwrite" in capsys.readouterr().err)
        assert said == [False, True]

    def test_threshold_above_every_probability(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("clip.mp4", "--output", "deep/er", "--threshold", "1") == 0
        assert capsys.readouterr().out.count("  -\n") == 3
        masks = sorted((folder / "deep" / "er" / "clip" / "masks").iterdir())
        assert [Image.open(path).getextrema() for path in masks] == [(0, 0)] * 3

    def test_frames_per_second(self, run: Run, folder: Path):
        assert run("clip.mp4", "--frames-per-second", "2") == 0
        assert len(names(folder / "segmented" / "clip" / "masks")) == 6

    def test_early_exit(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        options = ("clip.mp4", "--format", "rle", "--output")
        assert run(*options, "whole") == 0
        assert run(*options, "coarse", "--early-exit-threshold", "1") == 0
        whole, coarse = ((folder / name / "clip" / "segments.jsonl").read_text() for name in ("whole", "coarse"))
        assert whole != coarse
        assert run(*options, "coarse") == 2
        assert "early_exit_threshold is not set, was 1.0" in capsys.readouterr().err

    def test_overlay_at_its_own_rate(self, run: Run, folder: Path):
        assert run("clip.mp4", "--output", "one", "--overlay") == 0
        assert run("clip.mp4", "--output", "fine", "--overlay", "--overlay-frames-per-second", "5") == 0
        assert names(folder / "fine" / "clip") == ["masks", "overlay.mp4", "segments.jsonl", "video.json"]
        assert names(folder / "fine" / "clip" / "masks") == names(folder / "one" / "clip" / "masks")
        coarse, fine = (
            read_media(folder / name / "clip" / "overlay.mp4", frames_per_second=10).frames for name in ("one", "fine")
        )
        # The masks of the first second differ somewhere, because the fine overlay has five of them.
        assert len(coarse) == len(fine) == 30
        assert np.abs(coarse[:10].astype(int) - fine[:10]).max() > 50

    def test_audio_from_another_file(self, run: Run, folder: Path):
        write_audio("audio.wav", audio(3), RATE)
        assert run("silent.mp4", *IMAGES, "--audio", "audio.wav") == 0
        overlay = read_media(folder / "segmented" / "silent" / "overlay.mp4")
        assert overlay.waveform.shape[1] >= 3 * RATE
        assert np.abs(overlay.waveform).max() > 0.1

    def test_overlay_plays_audio_of_another_video_when_the_network_heard_it(self, run: Run, folder: Path):
        write_odd_video(folder / "late.mkv", tracks=(Track(start=0.5),))  # a tone, 0.5 s after the audio begins
        assert run("silent.mp4", "--overlay", "--audio", "late.mkv") == 0
        heard, played = read_audio("late.mkv"), read_audio(folder / "segmented" / "silent" / "overlay.mp4")
        assert onset(*heard) == pytest.approx(0.5, abs=0.05)
        assert onset(*played) == pytest.approx(0.5, abs=0.05)

    def test_overlay_of_a_recording_that_begins_with_undecodable_frames(self, run: Run, folder: Path):
        write_odd_video(folder / "cut.ts", options={"x264-params": "keyint=8:scenecut=0"})
        assert run(str(begin_late(folder / "cut.ts", 0.05)), "--overlay") == 0
        overlay = read_media(folder / "segmented" / "cut" / "overlay.mp4")
        assert onset(overlay.waveform, overlay.sampling_rate) == pytest.approx(0.2, abs=0.05)

    def test_failed_video_does_not_stop_the_others(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("silent.mp4", "clip.mp4") == 1
        assert names(folder / "segmented") == ["clip", "pcmanet_settings.json"]
        captured = capsys.readouterr()
        assert "failed: silent.mp4: silent.mp4 has no " in captured.err
        assert "1 of 2 videos segmented" in captured.out

    def test_finished_videos_are_skipped(self, run: Run, folder: Path):
        assert run("clip.mp4") == 0
        stamp = (folder / "segmented" / "clip").stat().st_mtime_ns
        write_clip(folder / "more" / "other.mp4", seconds=1)
        assert run("clip.mp4", "more") == 0
        assert (folder / "segmented" / "clip").stat().st_mtime_ns == stamp
        assert names(folder / "segmented") == ["clip", "other", "pcmanet_settings.json"]

    @pytest.mark.parametrize("options", [("--format", "rle"), ("--format", "parquet", "--contact-sheet")])
    def test_another_video_of_the_same_name_is_refused(
        self, run: Run, folder: Path, capsys: pytest.CaptureFixture, options: tuple[str, ...]
    ):
        write_clip(folder / "more" / "clip.mp4", seconds=1)
        assert run("clip.mp4", *options) == 0
        assert run(str(folder / "more" / ".." / "clip.mp4"), *options) == 0
        stamp = (folder / "segmented" / "clip").stat().st_mtime_ns
        assert run("more/clip.mp4", *options) == 2
        expected = (
            f"contains the results of {folder / 'clip.mp4'}, not of {folder / 'more' / 'clip.mp4'}. Give another"
        )
        assert expected in capsys.readouterr().err
        assert (folder / "segmented" / "clip").stat().st_mtime_ns == stamp
        assert run("more/clip.mp4", *options, "--overwrite") == 0

    def test_video_with_another_audio_is_refused(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        for seed in (1, 2):
            write_audio(f"audio_{seed}.wav", audio(3, seed), RATE)
        assert run("silent.mp4", "--audio", "audio_1.wav") == 0
        assert run("silent.mp4", "--audio", str(folder / "audio_1.wav")) == 0
        assert run("silent.mp4", "--audio", "audio_2.wav") == 2
        assert "with the audio of" in capsys.readouterr().err

    def test_overwrite(self, run: Run, folder: Path):
        assert run("clip.mp4", *IMAGES, "--frames-per-second", "2") == 0
        assert run("clip.mp4", "--overwrite") == 0
        assert names(folder / "segmented" / "clip") == ["masks", "segments.jsonl", "video.json"]
        assert len(names(folder / "segmented" / "clip" / "masks")) == 3


class TestErrors:
    def assert_refused(
        self, folder: Path, capsys: pytest.CaptureFixture, *expected: str, code: str = "error: "
    ) -> None:
        captured = capsys.readouterr()
        (line,) = [line for line in captured.err.splitlines() if code in line]
        for text in expected:
            assert text in line
        assert "Traceback" not in captured.err
        assert not (folder / "segmented" / "clip").exists()
        assert not list(folder.rglob(".pcmanet-*"))

    def test_missing_file(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("nowhere.mp4", "clip.mp4") == 2
        self.assert_refused(folder, capsys, "nowhere.mp4")

    def test_not_a_video(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        (folder / "text.mp4").write_text("not a video")
        assert run("text.mp4") == 1
        self.assert_refused(folder, capsys, "text.mp4", code="failed: ")

    def test_no_audio(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("silent.mp4") == 1
        self.assert_refused(folder, capsys, "silent.mp4", "--audio", code="failed: ")

    def test_missing_audio(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("silent.mp4", "--audio", "nowhere.wav") == 2
        self.assert_refused(folder, capsys, "nowhere.wav", "--audio")

    def test_missing_checkpoint(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("clip.mp4", model=str(folder / "no_model")) == 2
        self.assert_refused(folder, capsys, "no_model", "Hub id")

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                "is a Git LFS pointer, not the weights. Run `git lfs",
            ),
            (b"", "is damaged or incomplete: Error while deserializing header: header too small. Download"),
            (None, "is damaged or incomplete: Error while deserializing header: incomplete metadata"),
        ],
    )
    def test_damaged_weights(
        self,
        run: Run,
        checkpoint: Path,
        folder: Path,
        capsys: pytest.CaptureFixture,
        content: bytes | None,
        problem: str,
    ):
        shutil.copytree(checkpoint, folder / "model")
        weights = folder / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] if content is None else content)
        assert run("clip.mp4", model="model") == 2
        self.assert_refused(folder, capsys, f"error: model/model.safetensors {problem}")

    @pytest.mark.parametrize("name", ["warp", "meta", "cuda:99"])
    def test_missing_device(self, run: Run, folder: Path, capsys: pytest.CaptureFixture, name: str):
        assert run("clip.mp4", "--device", name) == 2
        self.assert_refused(folder, capsys, f"--device {name} is not available: ", "Devices of this machine: cpu")

    def test_two_videos_with_one_folder(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        write_clip(folder / "more" / "clip.mp4", seconds=1)
        assert run("clip.mp4", "more") == 2
        self.assert_refused(folder, capsys, "clip.mp4 and more/clip.mp4", "same folder clip")
        assert not (folder / "segmented").exists()
        assert run("clip.mp4", "more", "--format", "parquet") == 0

    def test_full_disk_leaves_nothing(
        self, run: Run, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ):
        def full_disk(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", full_disk)
        assert run("clip.mp4") == 2
        self.assert_refused(folder, capsys, "No space left on the disk of segmented", "run the same command again")

    @pytest.mark.parametrize("name", ["thesis.txt", "clip/portrait.png", "sub/overlay.mp4"])
    def test_folder_with_other_files_is_refused(
        self, run: Run, folder: Path, capsys: pytest.CaptureFixture, name: str
    ):
        path = folder / "mine" / name
        path.parent.mkdir(parents=True)
        path.write_text("precious")
        for options in ([], ["--overwrite"]):
            assert run("clip.mp4", "--output", "mine", *options) == 2
            assert Path(name).parts[0] in capsys.readouterr().err
        assert path.read_text() == "precious"

    def test_other_files_among_results_are_not_overwritten(
        self, run: Run, folder: Path, capsys: pytest.CaptureFixture
    ):
        assert run("clip.mp4") == 0
        (folder / "segmented" / "clip" / "notes.txt").write_text("precious")
        assert run("clip.mp4", "--overwrite") == 2
        assert "segmented contains clip/notes.txt" in capsys.readouterr().err
        assert (folder / "segmented" / "clip" / "notes.txt").read_text() == "precious"

    def test_output_is_a_file(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        (folder / "taken").write_text("precious")
        assert run("clip.mp4", "--output", "taken") == 2
        assert "taken is a file" in capsys.readouterr().err
        assert run("clip.mp4", "--output", "taken/deep/er") == 2
        assert "taken is a file. Give another --output." in capsys.readouterr().err
        assert (folder / "taken").read_text() == "precious"

    def test_internal_error_shows_its_traceback(
        self, run: Run, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("pcmanet.cli.segment._summary", lambda *_: 1 / 0)
        assert run("clip.mp4") == 70
        assert "Traceback" in capsys.readouterr().err
        assert names(folder / "segmented") == ["pcmanet_settings.json"]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Minutes of frames and of silence, because noise takes seconds to encode."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    write_video(path, frames(200), 10, np.zeros((1, 200 * RATE), np.float32), RATE)
    return path


@pytest.mark.parametrize("wanted, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(checkpoint: Path, folder: Path, long_clip: Path, wanted: signal.Signals, code: int):
    """Nothing remains of the video that was being segmented, and the message has the command to resume."""
    (folder / "long.mp4").symlink_to(long_clip)
    options = ["segment", "clip.mp4", "long.mp4", "--model", str(checkpoint), "--frames-per-second", "10"]
    process = start_process(lambda: main(options), folder / "log")
    wait_until((folder / "segmented" / "clip").exists, process, folder / "log")
    os.kill(process, wanted)
    assert finish_process(process) == code
    assert names(folder / "segmented") == ["clip", "pcmanet_settings.json"]
    log = (folder / "log").read_text()
    assert "To resume: pcmanet segment clip.mp4 long.mp4" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("wanted, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_error_while_an_interrupt_is_handled_does_not_hide_it(
    wanted: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def command(_: object) -> bool:
        try:
            os.kill(os.getpid(), wanted)
            time.sleep(30)
        finally:
            os.close(-1)  # a file that the interrupt found half closed

    monkeypatch.setitem(sys.modules, "closing_command", SimpleNamespace(run=command))
    monkeypatch.setitem(COMMANDS, "info", "closing_command")
    # A shell that starts the tests in the background lets them ignore Ctrl-C, which the command respects.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["info", "model"]) == code
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert "To resume" in capsys.readouterr().err


@pytest.mark.parametrize("wanted, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_in_a_finalizer_is_not_lost(folder: Path, wanted: signal.Signals, code: int):
    """Python ignores exceptions that `__del__` raises; progress bars have such a method."""

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), wanted)
            time.sleep(0.01)

    def command(_: object) -> bool:
        Finalized()
        time.sleep(30)
        return False

    def work() -> int:
        sys.modules["finalizing_command"] = SimpleNamespace(run=command)
        COMMANDS["info"] = "finalizing_command"
        return main(["info", "model"])

    assert finish_process(start_process(work, folder / "log")) == code
    assert "To resume: pcmanet info model" in (folder / "log").read_text()


def test_closed_output(checkpoint: Path, folder: Path):
    """As in `pcmanet segment clip.mp4 | true`: the results are complete."""
    reader, writer = os.pipe()
    os.close(reader)

    def segment() -> int:
        sys.stdout = os.fdopen(writer, "w")
        return main(["segment", "clip.mp4", "--model", str(checkpoint)])

    process = start_process(segment, folder / "log")
    os.close(writer)
    assert finish_process(process) == 141
    assert names(folder / "segmented") == ["clip", "pcmanet_settings.json"]
    assert "rror" not in (folder / "log").read_text()


class TestOutput:
    """What a command prints, whatever the terminal."""

    @pytest.fixture
    def words(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The words after `pcmanet` of a command that prints names of files."""

        def command(_: object) -> None:
            sys.stdout.write("naïve 視.mp4 " + os.fsdecode(b"caf\xe9.mp4"))

        monkeypatch.setitem(sys.modules, "printing_command", SimpleNamespace(run=command))
        monkeypatch.setitem(COMMANDS, "info", "printing_command")
        return ["info", "model"]

    @pytest.mark.parametrize(
        "encoding, expected",
        [
            ("ascii", rb"na\xefve \u8996.mp4 caf\udce9.mp4"),
            ("latin-1", b"na\xefve " + rb"\u8996.mp4 caf\udce9.mp4"),
            ("utf-8", "naïve 視.mp4 ".encode() + rb"caf\udce9.mp4"),
        ],
    )
    def test_any_name_is_printed(
        self, words: list[str], encoding: str, expected: bytes, monkeypatch: pytest.MonkeyPatch
    ):
        terminal = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding=encoding))
        assert main(words) == 0
        assert terminal.getvalue() == expected

    def test_closed_outputs(self, words: list[str], monkeypatch: pytest.MonkeyPatch):
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, None)
        assert main(words) == 0
        for output in (sys.stdout, sys.stderr):
            output.close()


class TestStart:
    """Help and usage errors, before torch is imported."""

    def test_help_does_not_import_torch(self):
        code = (
            "import sys; from pcmanet.cli.main import COMMANDS, main\n"
            "try: main(['--help'])\n"
            "except SystemExit as end: assert end.code == 0\n"
            "print(sorted({'torch', 'transformers', 'av', 'numpy', 'PIL', 'pyarrow'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert all(text in done.stdout for text in ("segment", "demo", "info", "evaluate", "train", "exit codes:"))
        assert done.stdout.splitlines()[-1] == "[]"

    @pytest.mark.parametrize(
        "words, expected",
        [
            (["segment"], "give either VIDEO or --data"),
            (["segment", ""], "expected a path or name, got an empty string"),
            (["segment", "a.mp4", "--output", ""], "argument --output: expected a path"),
            (["segment", "a.mp4", "--data", "b"], "give either VIDEO or --data"),
            (["segment", "a.mp4", "b.mp4", "--audio", "c.wav"], "exactly one VIDEO"),
            (["segment", "a.mp4", "--threshold", "50"], "expected a number from 0 to 1, got 50"),
            (["segment", "a.mp4", "--frames-per-second", "0"], "expected a number above 0, got 0"),
            (["segment", "a.mp4", "--frames-per-second", "nan"], "expected a number above 0, got nan"),
            (["segment", "a.mp4", "--minimum-area", "much"], "expected a number, got much"),
            (["segment", "a.mp4", "--early-exit-threshold", "2"], "expected a number from 0 to 1, got 2"),
            (["segment", "a.mp4", "--shard-minutes", "-1"], "expected 0 or more, got -1"),
            (["segment", "a.mp4", "--shard-minutes", "5"], "--shard-minutes requires --format parquet"),
            (["segment", "a.mp4", "--overlay-frames-per-second", "4"], "requires --overlay"),
            (["segment", "a.mp4", "--retry-failed"], "requires --format parquet"),
            (["segment", "a.mp4", "--ray-workers", "2"], "--ray-workers requires --ray"),
            (["segment", "a.mp4", "--format", "parquet", "--shard-minutes", "5", "--ray", "auto"], "apply to --ray"),
            *((["segment", "a.mp4", option, "s4"], f"{option} requires --data") for option in DATA_OPTIONS),
            (["evaluate", "demo", "--data", "a", "--off-screen-audio", "b"], "requires --negative-audio off_screen"),
            (["train", "--output", "a", "--hub-private"], "--hub-private requires --push-to-hub"),
            (["train", "--output", "a", "--hub-code"], "--hub-code requires --push-to-hub"),
            (["train", "--output", "a", "--allow", "data"], "--allow requires --resume"),
            (["train", "--list-fields", "--recipe", "s4"], "--recipe requires --output"),
            (["segment", "a.mp4", "--ray", "auto", "--ray-workers", "0"], "expected an integer of 1 or more, got 0"),
            (["segment", "a.mp4", "--over"], "unrecognized arguments: --over"),
            (["evaluate", "demo", "--data", "a", "--batch-size", "0"], "expected an integer of 1 or more, got 0"),
            (["evaluate", "demo", "--data", "a", "--worst", "-1"], "expected an integer of 0 or more, got -1"),
            (["evaluate", "demo"], "required: --data"),
            (["train"], "one of the arguments --output --list-fields is required"),
            (["paint"], "invalid choice: 'paint'"),
            ([], "COMMAND"),
        ],
    )
    def test_usage(self, words: list[str], expected: str, capsys: pytest.CaptureFixture):
        with pytest.raises(SystemExit) as exit_:
            main(words)
        assert exit_.value.code == 2
        assert expected in capsys.readouterr().err

    def test_version(self, capsys: pytest.CaptureFixture):
        with pytest.raises(SystemExit) as exit_:
            main(["--version"])
        assert exit_.value.code == 0
        assert capsys.readouterr().out == f"pcmanet {pcmanet.__version__}\n"

    def test_choices_are_those_of_the_library(self):
        assert arguments.DATASETS == NAMES
        assert arguments.LABEL_NOISE_RULES == LABEL_NOISE_RULES
        assert tuple(NEGATIVES) == arguments.NEGATIVE_AUDIO
