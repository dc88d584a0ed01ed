"""Writing: what is in the files, the same bytes each time, and nothing left of what failed."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from modeling_pcmanet.media_pcmanet import MediaError, iterate_frames, read_audio, read_media
from modeling_pcmanet.media_writing_pcmanet import write_audio, write_video


def smooth_frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Colour ramps that move."""
    rows, columns = np.mgrid[:height, :width]
    ramps = [(rows * 4 + 2 * index, columns * 3, np.full_like(rows, 120)) for index in range(count)]
    return [np.stack(ramp, axis=2).clip(0, 255).astype(np.uint8) for ramp in ramps]


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [25, 12.5, 30000 / 1001, 1])
def test_frames_come_back(tmp_path: Path, rate: float) -> None:
    frames = smooth_frames(12)
    write_video(tmp_path / "clip.mp4", frames, rate)
    timestamps, decoded = zip(*iterate_frames(tmp_path / "clip.mp4"), strict=True)
    np.testing.assert_allclose(timestamps, np.arange(12) / rate, atol=1e-4)
    assert np.abs(np.stack(decoded).astype(int) - np.stack(frames)).mean() < 3


def test_an_odd_size_repeats_its_edge(tmp_path: Path) -> None:
    frames = smooth_frames(3, height=37, width=51)
    write_video(tmp_path / "odd.mp4", frames, 25)
    decoded = next(iterate_frames(tmp_path / "odd.mp4"))[1].astype(int)
    assert decoded.shape == (38, 52, 3)
    assert np.abs(decoded[37] - decoded[36]).mean() < 6
    assert np.abs(decoded[:37, :51] - frames[0]).mean() < 3


def test_the_file_is_what_browsers_play(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, smooth_frames(30), 25, np.stack([tone(44100), tone(44100)]), 44100)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, video.average_rate) == ("h264", "yuv420p", Fraction(25))
        assert (audio.codec_context.name, audio.rate, audio.layout.name) == ("aac", 44100, "stereo")
        assert [video.codec_context.colorspace, video.codec_context.color_range] == [5, 1]
        order = [packet.stream.type for packet in container.demux() if packet.size]
    assert "audio" in order[: len(order) // 2] and "video" in order[len(order) // 2 :]


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
@pytest.mark.parametrize("seconds", [0.7, 1.0, 1.6])
def test_sound_comes_back_whatever_its_length(tmp_path: Path, rate: int, seconds: float) -> None:
    write_video(tmp_path / "clip.mp4", smooth_frames(25), 25, tone(rate, seconds), rate)
    media = read_media(tmp_path / "clip.mp4")
    assert media.sampling_rate == rate
    inside = slice(2048, round(rate * seconds) - 2048)
    np.testing.assert_allclose(media.waveform[0, inside], tone(rate, seconds)[inside], atol=0.025)


def test_every_channel_comes_back_in_its_place(tmp_path: Path) -> None:
    pitches = np.array([300, 400, 500, 50, 700, 800, 900, 1000])
    sound = 0.3 * np.sin(2 * np.pi * pitches[:, None] * np.arange(44100) / 44100)
    for channels in (1, 2, 6, 8):
        write_video(tmp_path / "clip.mp4", smooth_frames(25), 25, sound[:channels], 44100)
        waveform = read_media(tmp_path / "clip.mp4").waveform[:, :44100]
        np.testing.assert_array_equal(np.abs(np.fft.rfft(waveform)).argmax(axis=1), pitches[:channels])


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames, 25, tone(16000), 16000)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    for name in ("a.wav", "b.wav"):
        write_audio(tmp_path / name, tone(16000), 16000)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def failing_frames() -> Iterator[np.ndarray]:
    yield from smooth_frames(20)
    raise RuntimeError("the source failed")


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (failing_frames, RuntimeError),
        (lambda: iter(()), MediaError),
        (lambda: [*smooth_frames(3), np.zeros((8, 8, 3), np.uint8)], MediaError),
    ],
)
def test_nothing_is_left_of_what_failed(tmp_path: Path, frames: object, error: type[Exception]) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(error):
        write_video(path, frames(), 25, tone(16000), 16000)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"what was there before")
    with pytest.raises(error):
        write_video(path, frames(), 25)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"what was there before"]


def test_a_finished_file_replaces_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"what was there before")
    write_video(path, smooth_frames(5), 25)
    assert list(tmp_path.iterdir()) == [path]
    assert len(list(iterate_frames(path))) == 5


@pytest.mark.parametrize(
    ("frame", "received"),
    [
        (np.zeros((8, 8, 3)), r"float64 \(8, 8, 3\)"),
        (np.zeros((8, 8), np.uint8), r"uint8 \(8, 8\)"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \(3, 8, 8\)"),
        ("frame", "str"),
    ],
)
def test_what_is_no_frame_is_named(tmp_path: Path, frame: object, received: str) -> None:
    with pytest.raises(MediaError, match=rf"Frame 1 must be a uint8 array \(height, width, 3\), got {received}"):
        write_video(tmp_path / "clip.mp4", [np.zeros((8, 8, 3), np.uint8), frame], 25)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(100, np.int16), r"int16 \(1, 100\). Divide integers"),
        (np.zeros((100, 2)), r"float64 \(100, 2\)"),
        (np.zeros((1, 2, 100)), r"float64 \(1, 2, 100\)"),
        (np.zeros((1, 0)), r"float64 \(1, 0\)"),
        (np.array([0.0, math.nan]), "NaN or infinite, the first is number 1"),
    ],
)
def test_what_is_no_waveform_is_named(tmp_path: Path, waveform: np.ndarray, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        write_video(tmp_path / "clip.mp4", smooth_frames(2), 25, waveform, 16000)
    with pytest.raises(MediaError, match=message):
        write_audio(tmp_path / "sound.wav", waveform, 16000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [None, 0, -16000, 16000.5, 12345])
def test_a_sampling_rate_that_aac_does_not_know_is_refused(tmp_path: Path, rate: object) -> None:
    with pytest.raises(MediaError, match="sampling_rate must be one of .*16000.* hertz, got"):
        write_video(tmp_path / "clip.mp4", smooth_frames(2), 25, tone(16000), rate)


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_an_impossible_frame_rate_is_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        write_video(tmp_path / "clip.mp4", smooth_frames(2), rate)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No such folder: .*nowhere"):
        write_video(tmp_path / "nowhere" / "clip.mp4", smooth_frames(2), 25)
    with pytest.raises(MediaError, match=r"clip\.avi must end in '\.mp4'"):
        write_video(tmp_path / "clip.avi", smooth_frames(2), 25)
    with pytest.raises(MediaError, match=r"sound\.mp3 must end in '\.wav'"):
        write_audio(tmp_path / "sound.mp3", tone(16000), 16000)


def test_wav_keeps_sixteen_bits_and_stops_at_full_scale(tmp_path: Path) -> None:
    steps = np.array([[-32768, -32767, -1, 0, 1, 32767], [5, 4, 3, 2, 1, 0]])
    write_audio(tmp_path / "sound.wav", steps / 32768, np.int64(12345))
    waveform, rate = read_audio(tmp_path / "sound.wav")
    assert rate == 12345
    np.testing.assert_array_equal(waveform, steps / 32768)
    write_audio(tmp_path / "loud.wav", np.array([-3.0, 3.0], np.float32), 16000)
    np.testing.assert_array_equal(read_audio(tmp_path / "loud.wav")[0], [[-1.0, 32767 / 32768]])
