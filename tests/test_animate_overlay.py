"""The animation of a video: its frames, its rate, and the bars of the audio that has been heard."""

import sys

import numpy as np
import pytest
from command_runs import RATE
from PIL import Image

from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.examples import animate_overlay


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_frames_and_bars(tmp_path, monkeypatch, capsys, suffix):
    """Two seconds: red without audio, then blue with a loud tone."""
    frames = np.zeros((20, 48, 64, 3), np.uint8)
    frames[:10, ..., 0] = frames[10:, ..., 2] = 255
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE).astype(np.float32)
    tone[:RATE] = 0
    write_video(tmp_path / "overlay.mp4", frames, 10, tone[None], RATE)
    output = tmp_path / f"overlay.{suffix}"
    words = [str(tmp_path / "overlay.mp4"), "--output", str(output), "--frames-per-second", "2", "--width", "128"]
    monkeypatch.setattr(sys, "argv", ["animate_overlay", *words])
    animate_overlay.main()
    assert capsys.readouterr().out.startswith(f"{output}: 4 frames")

    with Image.open(output) as animation:
        assert (animation.n_frames, animation.size, animation.info["loop"]) == (4, (128, 96 + 40), 0)
        images = []
        for number in range(4):
            animation.seek(number)
            images.append(np.asarray(animation.convert("RGB")).astype(int))
            assert animation.info["duration"] == 500
    red, blue = (int(images[number][48, 64].argmax()) for number in (1, 2))
    assert (red, blue) == (0, 2)
    bars = [image[96:].min(axis=2) < 230 for image in images]  # anything but the background
    assert bars[3][:, :56].sum(axis=0).max() <= 6 < bars[3][:, 72:].sum(axis=0).max()
    dark = [image[96:].mean(axis=2) < 128 for image in images]  # what has been heard
    assert [bool(mask[:, :56].any()) for mask in dark] == [True] * 4
    assert [bool(mask[:, 100:].any()) for mask in dark] == [False, False, False, True]


@pytest.mark.parametrize(
    "video, output, message",
    [
        ("nowhere.mp4", "a.webp", "No such media file: nowhere.mp4"),
        ("clip.mp4", "a.txt", "unknown file extension: .txt"),
    ],
)
def test_errors_have_no_traceback(tmp_path, monkeypatch, video, output, message):
    monkeypatch.chdir(tmp_path)
    write_video("clip.mp4", np.zeros((10, 48, 64, 3), np.uint8), 10, np.zeros((1, RATE), np.float32), RATE)
    monkeypatch.setattr(sys, "argv", ["animate_overlay", video, "--output", output])
    with pytest.raises(SystemExit, match=f"error: {message}"):
        animate_overlay.main()
