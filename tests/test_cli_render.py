"""Tests of src/pcmanet/cli/render.py; the files that it writes are tested in test_main.py."""

from pathlib import Path

import numpy as np
import pytest
from command_runs import RATE, frames, write_clip

from modeling_pcmanet.media_pcmanet import MediaError, VideoReader, read_media
from modeling_pcmanet.media_writing_pcmanet import write_audio, write_video
from pcmanet.cli.render import loudest_samples, open_video


def test_size_and_length(tmp_path: Path):
    video = open_video("a clip", write_clip(tmp_path / "clip.mp4", seconds=2), None)
    assert (video.name, video.size) == ("a clip", (48, 64))
    assert video.seconds == pytest.approx(2, abs=0.1)
    assert video.sound == video.source
    beside = open_video("a clip", (tmp_path / "clip.mp4").read_bytes(), "sound.wav")
    assert (beside.size, beside.sound) == ((48, 64), "sound.wav")


def test_no_video(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError, match="text.mp4"):
        open_video("text.mp4", tmp_path / "text.mp4", None)


@pytest.mark.parametrize("rate", [3, 100, 7000])
def test_envelope_is_the_loudest_sample_of_each_part(tmp_path: Path, rate: int):
    waveform = np.random.default_rng(0).uniform(-1, 1, (2, 2 * RATE)).astype(np.float32)
    write_audio(tmp_path / "sound.wav", waveform, RATE)
    envelope = loudest_samples(str(tmp_path / "sound.wav"), None, rate)
    parts = np.arange(2 * RATE) * rate // RATE
    expected = [np.abs(waveform[:, parts == part]).max() for part in range(2 * rate)]
    assert envelope == pytest.approx(expected, abs=2e-4)


def test_envelope_lies_on_the_clock_of_the_video(tmp_path: Path):
    waveform = np.zeros((1, 2 * RATE), np.float32)
    waveform[0, RATE : RATE + 800] = 0.9
    write_video(tmp_path / "clip.mp4", frames(2), 10, waveform, RATE)
    reader = VideoReader(tmp_path / "clip.mp4")
    assert len(list(reader)) == len(read_media(tmp_path / "clip.mp4").frames)
    envelope = loudest_samples(tmp_path / "clip.mp4", reader, 20)
    assert envelope[19:22].max() > 0.5
    assert envelope[:18].max() < 0.1
    assert envelope[23:].max() < 0.1
