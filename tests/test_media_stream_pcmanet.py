"""Two doors into one file, moments of masks, and memory that does not grow."""

import io
import os
from pathlib import Path

import numpy as np
import pytest

from modeling_pcmanet.media_pcmanet import MediaError, read_audio, read_media, write_audio, write_video
from modeling_pcmanet.media_stream_pcmanet import (
    VideoReader,
    iterate_sound,
    join_moments,
    stream_array,
    two_doors,
)


RATE = 16_000
PICTURE = np.zeros((4, 6, 3), np.uint8)


def tone(seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)[None].astype(np.float32)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(
        path,
        np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None, None] * 5, (50, 32, 48, 3)),
        10,
        tone(5),
        RATE,
    )
    return path


def test_frames_and_sound_are_those_of_a_whole_read(video: Path):
    media = read_media(video, frames_per_second=4)
    reader = VideoReader(video, 4)
    frames = list(reader)
    np.testing.assert_array_equal(np.stack([frame.picture for frame in frames]), media.frames)
    assert [frame.timestamp for frame in frames] == media.timestamps.tolist()
    assert reader.end == pytest.approx(5.0)
    pieces, rates = zip(*iterate_sound(video, reader), strict=True)
    waveform = np.concatenate(pieces, axis=1)
    np.testing.assert_array_equal(waveform[:, : 5 * RATE], media.waveform[:, : 5 * RATE])
    assert set(rates) == {RATE}


def test_a_sound_file_starts_where_it_starts(tmp_path: Path):
    write_audio(tmp_path / "sound.wav", tone(2), RATE)
    waveform = np.concatenate([piece for piece, _ in iterate_sound(tmp_path / "sound.wav")], axis=1)
    np.testing.assert_array_equal(waveform, read_audio(tmp_path / "sound.wav")[0])


def test_what_has_no_picture_or_no_sound_is_refused(tmp_path: Path):
    write_audio(tmp_path / "sound.wav", tone(1), RATE)
    with pytest.raises(MediaError, match=r"sound\.wav has no video"):
        list(VideoReader(tmp_path / "sound.wav"))
    silent = tmp_path / "silent.mp4"
    write_video(silent, np.zeros((5, 32, 48, 3), np.uint8), 10)
    with pytest.raises(MediaError, match=r"silent\.mp4 has no sound track"):
        list(iterate_sound(silent))


def test_the_last_frame_brings_the_moments_after_it():
    events = [(0.1, None), (0.2, None), (0.2, PICTURE), (0.3, None), (0.4, PICTURE), (0.5, None), (0.6, None)]
    frames = list(join_moments(events, holds=True))
    assert [(frame.timestamp, frame.mask_timestamps) for frame in frames] == [
        (0.2, (0.1, 0.2)),
        (0.4, (0.3, 0.5, 0.6)),
    ]


def test_without_moments_no_frame_waits():
    given = []

    def events():
        for second in range(3):
            given.append(second)
            yield float(second), PICTURE

    assert [(frame.timestamp, len(given)) for frame in join_moments(events(), holds=False)] == [(0, 1), (1, 2), (2, 3)]


def test_moments_of_frames_in_memory():
    frames = list(stream_array(np.stack([PICTURE] * 2), np.array([0.9375, 1.9375]), 2.0, 2))
    assert [frame.mask_timestamps for frame in frames] == [(0.46875,), (0.96875, 1.46875, 1.96875)]


@pytest.mark.parametrize("seekable", [True, False])
def test_two_doors_are_two_places_in_one_file(seekable: bool):
    class File(io.BytesIO):
        name = "somewhere.mp4"

        def seekable(self) -> bool:
            return seekable

    file = File(bytes(range(100)))
    with two_doors(file) as (one, other):
        assert one.read(10) == bytes(range(10))
        assert other.read(3) == bytes(range(3))
        assert one.read(2) == bytes([10, 11])
        assert other.seek(-5, os.SEEK_END) == 95
        assert other.read() == bytes(range(95, 100))
        assert one.seek(3, os.SEEK_CUR) == one.tell() == 15
        assert one.name == "somewhere.mp4"
        assert one.readable() and one.seekable()
    assert not file.closed


def test_a_file_that_was_opened_as_text_is_refused(video: Path):
    with video.open(encoding="latin-1") as file, pytest.raises(MediaError, match="opened with 'rb'"), two_doors(file):
        pass


def test_paths_and_bytes_are_opened_twice(video: Path):
    for source in (video, str(video), b"bytes"):
        with two_doors(source) as doors:
            assert doors == (source, source)
