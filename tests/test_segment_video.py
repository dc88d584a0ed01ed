"""Tests of examples/segment_video.py: the command as a user runs it, on real files with a tiny model."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
)
from modeling_pcmanet.media_pcmanet import read_media, write_audio, write_video


SCRIPT = Path(__file__).parents[1] / "examples" / "segment_video.py"
SIZE = (64, 48)
RATE = 16000
RESULTS = ["contact_sheet.png", "masks", "overlay.mp4"]

Run = Callable[..., int]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that always finds about half of the picture sounding."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = PCMANetForAudioVisualSegmentation(PCMANetConfig.from_preset("tiny", hidden_size=16, head_channels=8))
    head = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    torch.nn.init.normal_(head.weight, std=2.0)
    processor = PCMANetProcessor(PCMANetImageProcessor(size={"height": 32, "width": 32}), PCMANetFeatureExtractor())
    batch = processor(videos=frames(3)[::10], audio=sound(3), sampling_rate=RATE)
    with torch.no_grad():
        head.bias -= model.eval()(**batch).logits.median()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def frames(seconds: int) -> np.ndarray:
    still = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([np.roll(still, frame, axis=1) for frame in range(10 * seconds)])


def sound(seconds: int) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.1, (1, seconds * RATE)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a clip of 3 seconds and a silent one."""
    monkeypatch.chdir(tmp_path)
    write_video("clip.mp4", frames(3), 10, sound(3), RATE)
    write_video("silent.mp4", frames(3), 10)
    return tmp_path


@pytest.fixture
def run(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the script in this process; gives the exit code."""
    specification = importlib.util.spec_from_file_location("segment_video", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def run_script(*arguments: str, model: str = str(checkpoint)) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--model", model])
        try:
            script.main()
        except SystemExit as exit_:
            return exit_.code
        return 0

    return run_script


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestResults:
    def test_table_and_files(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("clip.mp4") == 0
        lines = capsys.readouterr().out.splitlines()
        output = folder / "clip_segmented"
        assert names(output) == RESULTS
        assert names(folder) == ["clip.mp4", "clip_segmented", "silent.mp4"]
        assert names(output / "masks") == [f"000{number}_at_{number}.900s.png" for number in range(3)]

        assert lines[0].split() == ["second", "what", "sounds", "score", "share", "of", "the", "picture"]
        for number, line in enumerate(lines[1:4]):
            second, label, score, share = line.split()
            with Image.open(output / "masks" / f"000{number}_at_{number}.900s.png") as mask:
                assert share == f"{np.asarray(mask).mean() / 255:.1%}"
                assert mask.size == SIZE
            assert (second, label) == (f"{number}.90", "sounding")
            assert 0.5 < float(score) <= 1
        assert [line.split()[-1] for line in lines[-3:]] == [
            "clip_segmented/overlay.mp4",
            "clip_segmented/masks",
            "clip_segmented/contact_sheet.png",
        ]

        overlay, original = read_media(output / "overlay.mp4"), read_media("clip.mp4")
        assert overlay.frames.shape == original.frames.shape
        assert (overlay.waveform == original.waveform).all()
        with Image.open(output / "contact_sheet.png") as sheet:
            assert sheet.width > 1000

    def test_threshold_that_nothing_reaches(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("clip.mp4", "--output", "deep/er", "--threshold", "1") == 0
        assert capsys.readouterr().out.count("  nothing\n") == 3
        masks = sorted((folder / "deep" / "er" / "masks").iterdir())
        assert [Image.open(path).getextrema() for path in masks] == [(0, 0)] * 3

    def test_frames_per_second(self, run: Run, folder: Path):
        assert run("clip.mp4", "--output", "out", "--frames-per-second", "2") == 0
        assert len(names(folder / "out" / "masks")) == 6

    def test_overlay_at_a_rate_of_its_own(self, run: Run, folder: Path):
        assert run("clip.mp4", "--output", "one") == 0
        assert run("clip.mp4", "--output", "fine", "--overlay-frames-per-second", "5") == 0
        assert names(folder / "fine" / "masks") == names(folder / "one" / "masks")
        coarse, fine = (
            read_media(folder / name / "overlay.mp4", frames_per_second=10).frames for name in ("one", "fine")
        )
        # The masks of the first second differ somewhere, because the fine overlay has five of them.
        assert len(coarse) == len(fine) == 30
        assert np.abs(coarse[:10].astype(int) - fine[:10]).max() > 50

    def test_sound_from_another_file(self, run: Run, folder: Path):
        write_audio("sound.wav", sound(3), RATE)
        assert run("silent.mp4", "--output", "out", "--audio", "sound.wav") == 0
        overlay = read_media(folder / "out" / "overlay.mp4")
        assert overlay.waveform.shape[1] >= 3 * RATE
        assert np.abs(overlay.waveform).max() > 0.1

    def test_earlier_result_is_replaced(self, run: Run, folder: Path):
        assert run("clip.mp4", "--output", "out", "--frames-per-second", "2") == 0
        assert run("clip.mp4", "--output", "out") == 0
        assert names(folder / "out") == RESULTS
        assert len(names(folder / "out" / "masks")) == 3


class TestErrors:
    def assert_refused(self, folder: Path, capsys: pytest.CaptureFixture, *expected: str) -> None:
        captured = capsys.readouterr()
        (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        for text in expected:
            assert text in line
        assert "overlay" not in captured.out
        assert not (folder / "out").exists()
        assert not [name for name in names(folder) if name.startswith(".")]

    def test_no_such_file(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("nowhere.mp4", "--output", "out") == 2
        self.assert_refused(folder, capsys, "nowhere.mp4")

    def test_not_a_video(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        (folder / "text.mp4").write_text("this is no video")
        assert run("text.mp4", "--output", "out") == 2
        self.assert_refused(folder, capsys, "text.mp4")

    def test_no_sound(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("silent.mp4", "--output", "out") == 2
        self.assert_refused(folder, capsys, "silent.mp4", "no sound track", "audio=")

    def test_no_such_checkpoint(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("clip.mp4", "--output", "out", model=str(folder / "no_model")) == 2
        self.assert_refused(folder, capsys, "no_model", "Hub id")

    def test_threshold_out_of_range(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        assert run("clip.mp4", "--output", "out", "--threshold", "50") == 2
        self.assert_refused(folder, capsys, "threshold", "50")

    def test_failure_while_writing_leaves_nothing(
        self, run: Run, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ):
        def full_disk(*_: object, **__: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(Image.Image, "save", full_disk)
        assert run("clip.mp4", "--output", "out") == 2
        self.assert_refused(folder, capsys, "No space left on device")

    @pytest.mark.parametrize("stranger", ["thesis.txt", "masks/portrait.png", "sub/overlay.mp4"])
    def test_folder_with_other_things_is_left_alone(
        self, run: Run, folder: Path, capsys: pytest.CaptureFixture, stranger: str
    ):
        path = folder / "mine" / stranger
        path.parent.mkdir(parents=True)
        path.write_text("precious")
        assert run("clip.mp4", "--output", "mine") == 2
        assert Path(stranger).parts[0] in capsys.readouterr().err
        assert path.read_text() == "precious"

    def test_output_is_a_file(self, run: Run, folder: Path, capsys: pytest.CaptureFixture):
        (folder / "taken").write_text("precious")
        assert run("clip.mp4", "--output", "taken") == 2
        assert "taken is a file" in capsys.readouterr().err
        assert (folder / "taken").read_text() == "precious"
