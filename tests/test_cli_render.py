"""The files of one video: how often the video is opened, thumbnails, and the envelope of the audio."""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from command_runs import RATE, frames, save_checkpoint, write_clip
from odd_media import Track, write_odd_video

from modeling_pcmanet.media_pcmanet import MediaReader, read_media
from modeling_pcmanet.media_writing_pcmanet import write_audio, write_video
from pcmanet.cli.main import main
from pcmanet.cli.render import add_peaks, draw
from pcmanet.cli.results import RecordedResults


pytestmark = pytest.mark.usefixtures("checkpoints_are_loaded_once")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the media files that are opened for reading."""
    names, open_container = [], av.open

    def spy(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "r":
            names.append(Path(getattr(file, "name", str(file))).name)
        return open_container(file, mode, *arguments, **options)

    monkeypatch.setattr(av, "open", spy)
    return names


def test_a_note_is_logged_once(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write_odd_video(tmp_path / "clip.mkv", tracks=[Track(language="ger"), Track(language="eng")])
    command = ["segment", str(path), "--model", str(checkpoint), "--output", str(tmp_path / "out"), "--overlay"]
    assert main([*command, "--device", "cpu", "--contact-sheet"]) == 0
    assert caplog.text.count("of its 2 audio tracks number 1 (ger) is taken") == 1


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ([], 1),
        (["--overlay"], 2),
        (["--contact-sheet"], 2),
        (["--overlay", "--contact-sheet"], 2),
        # The network runs at two rates.
        (["--overlay", "--overlay-frames-per-second", "4", "--contact-sheet"], 2),
    ],
)
def test_a_video_is_opened_once_per_pass(
    checkpoint: Path, tmp_path: Path, opened: list[str], options: list[str], times: int
):
    write_clip(tmp_path / "clip.mp4", seconds=2)
    opened.clear()
    command = ["segment", str(tmp_path / "clip.mp4"), "--model", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu", *options]) == 0
    assert opened == ["clip.mp4"] * times


@pytest.mark.parametrize("options", [[], ["--overlay-frames-per-second", "4"]])
def test_separate_audio_is_opened_once_per_pass(
    checkpoint: Path, tmp_path: Path, opened: list[str], options: list[str]
):
    write_clip(tmp_path / "clip.mp4", seconds=2, silent=True)
    write_audio(tmp_path / "audio.wav", np.random.default_rng(0).normal(0, 0.1, (1, 2 * RATE)), RATE)
    opened.clear()
    command = ["segment", str(tmp_path / "clip.mp4"), "--audio", str(tmp_path / "audio.wav"), "--device", "cpu"]
    output = ["--model", str(checkpoint), "--output", str(tmp_path / "out"), "--overlay", "--contact-sheet"]
    assert main([*command, *output, *options]) == 0
    assert sorted(opened) == ["audio.wav"] * 2 + ["clip.mp4"] * 2


@pytest.mark.parametrize("overlay", [True, False])
def test_the_contact_sheet_shows_the_network_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlay: bool):
    """With an overlay every frame is read, without one only the network frames: the thumbnails are the same."""
    clip = write_clip(tmp_path / "clip.mp4", seconds=3)
    media, shown = read_media(clip), {}
    monkeypatch.setattr("pcmanet.cli.render.draw_contact_sheet", lambda thumbnails, *_, **__: shown.update(thumbnails))
    results = RecordedResults(tmp_path / "records")
    for timestamp in media.timestamps:
        results.add({"timestamp": timestamp, "segments": []}, (48, 64))
    arguments = Namespace(
        format="json", overlay=overlay, overlay_frames_per_second=None, contact_sheet=True, frames_per_second=1.0
    )
    segmenter = Namespace(model=Namespace(config=Namespace(id2label={0: "sounding object"})))
    with pytest.raises(AttributeError, match="save"):  # of what is drawn here
        draw(
            segmenter,
            clip,
            None,
            arguments,
            tmp_path,
            results,
            results,
            size=(48, 64),
            title="clip",
            progress=lambda _: None,
        )
    assert sorted(shown) == [0, 1, 2]
    for number, frame in enumerate(media.frames):
        np.testing.assert_array_equal(shown[number], frame)


@pytest.mark.parametrize("rate", [3, 100, 7000])
def test_envelope_is_the_loudest_sample_of_each_part(tmp_path: Path, rate: int):
    waveform = np.random.default_rng(0).uniform(-1, 1, (2, 2 * RATE)).astype(np.float32)
    write_audio(tmp_path / "audio.wav", waveform, RATE)
    with MediaReader(tmp_path / "audio.wav", video=False) as reader:
        envelope = envelope_of(reader, rate)
    parts = np.arange(2 * RATE) * rate // RATE
    expected = [np.abs(waveform[:, parts == part]).max() for part in range(2 * rate)]
    assert envelope == pytest.approx(expected, abs=2e-4)


def test_envelope_is_on_the_clock_of_the_video(tmp_path: Path):
    waveform = np.zeros((1, 2 * RATE), np.float32)
    waveform[0, RATE : RATE + 800] = 0.9
    write_video(tmp_path / "clip.mp4", frames(2), 10, waveform, RATE)
    with MediaReader(tmp_path / "clip.mp4") as reader:
        assert len(list(reader.frames())) == 2
        envelope = envelope_of(reader, 20)
    assert max(envelope[19:22]) > 0.5
    assert max(envelope[:18]) < 0.1
    assert max(envelope[23:]) < 0.1


def envelope_of(reader: MediaReader, rate: int) -> list[float]:
    """Return the envelope of an open file."""
    peaks = []
    reader.listener = partial(add_peaks, peaks, rate)
    assert sum(packet.size for packet in reader.audio_packets())
    return peaks
