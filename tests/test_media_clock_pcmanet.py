"""Frames that nobody looks at are not decoded, and nothing else changes by it."""

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_media import HEIGHT, WIDTH, big_endian, every, overwrite, patch_box, write_film

from modeling_pcmanet.media_clock_pcmanet import FrameSampler, FrameSkipper, VideoClock
from modeling_pcmanet.media_pcmanet import read_media
from modeling_pcmanet.media_stream_pcmanet import VideoReader


SECONDS = 14
STEADY = every(seconds=SECONDS)
UNSTEADY = list(accumulate([0.0, *np.random.default_rng(0).choice([0.02, 0.04, 0.1, 0.1, 0.5, 2.5], 60)]))
X265 = {"x265-params": "bframes=4:log-level=none"}

# Suffix, encoder, its options, times of the frames, and the largest share of them that may be decoded.
FILMS = {
    "mp4": (".mp4", "libx264", {"bf": "3"}, STEADY, 0.7),
    "many B-frames": (".mp4", "libx264", {"bf": "8", "x264-params": "b-pyramid=none"}, STEADY, 0.7),
    "open groups of pictures": (".mp4", "libx264", {"x264-params": "open-gop=1:keyint=30"}, STEADY, 0.75),
    "interlaced": (".mp4", "libx264", {"flags": "+ildct+ilme"}, STEADY, 0.8),
    "unsteady": (".mp4", "libx264", {"bf": "3"}, UNSTEADY, 0.95),
    "mkv": (".mkv", "libx264", {"bf": "3"}, STEADY, 0.7),
    "broadcast": (".ts", "libx264", {"bf": "3"}, STEADY, 0.7),
    "times unknown": (".avi", "libx264", {"bf": "3"}, STEADY, 1.0),
    "HEVC": (".mp4", "libx265", X265, STEADY, 0.6),
    "MPEG-2": (".mpg", "mpeg2video", {"bf": "2"}, STEADY, 0.8),
    "MPEG-4": (".avi", "mpeg4", {"bf": "2"}, STEADY, 0.6),
    "every frame referred to": (".mp4", "libx264", {"bf": "0"}, STEADY, 1.0),
    "VP9": (".webm", "libvpx-vp9", {"b": "200k"}, STEADY, 1.0),
}


def own_picture(seconds: float) -> np.ndarray:
    """Returns a picture that no other moment has."""
    coarse = np.random.default_rng(round(1000 * seconds)).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def film(path: Path, name: str) -> Path:
    suffix, codec, options, times, _ = FILMS[name]
    return write_film(
        path.with_suffix(suffix), times=times, codec=codec, options=options, paint=own_picture, tracks=()
    )


def read(path: Path, *rates: float) -> list[tuple[Any, ...]]:
    """Reads a film both ways, to its end."""
    reader = VideoReader(path, *rates)
    frames = [(frame.timestamp, frame.mask_timestamps, frame.picture.tobytes()) for frame in reader]
    media = read_media(path, frames_per_second=rates[0], audio=False)
    return [*frames, (reader.origin, reader.end), (media.timestamps.tolist(), media.frames.tobytes(), media.notes)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moments of all frames that are decoded, in order."""
    moments, read_clock = [], VideoClock.read
    monkeypatch.setattr(VideoClock, "read", lambda *given: moments.append(read_clock(*given)) or moments[-1])
    return moments


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Any, ...]]]:
    """Reads a film like [`read`], but decodes every frame."""

    def read_whole(path: Path, *rates: float) -> list[tuple[Any, ...]]:
        with monkeypatch.context() as patch:
            patch.setattr(FrameSkipper, "skips", lambda *_: False)
            return read(path, *rates)

    return read_whole


@pytest.mark.parametrize("name", FILMS)
def test_what_is_skipped_is_not_missed(tmp_path: Path, name: str, decoded: list[float], whole: Callable) -> None:
    path = film(tmp_path / "film", name)
    for rates in ((1.0,), (0.3,), (2.5,), (1.0, 4.0)):
        assert read(path, *rates) == whole(path, *rates)
    decoded.clear()
    list(VideoReader(path))
    assert len(decoded) <= FILMS[name][-1] * len(FILMS[name][3])


def test_every_frame_is_decoded_where_every_frame_is_wanted(tmp_path: Path, decoded: list[float]) -> None:
    path = film(tmp_path / "film", "mp4")
    assert len(list(VideoReader(path, 1.0, "video"))) == SECONDS
    assert decoded == pytest.approx(STEADY)


def test_every_frame_is_decoded_where_frames_are_counted(tmp_path: Path, decoded: list[float]) -> None:
    path = write_film(tmp_path / "clip.mp4", times=every(seconds=5), paint=own_picture)
    read_media(path)
    assert decoded == pytest.approx(every(seconds=5))


@pytest.mark.parametrize("start", [0.0, 5.0, 13.9, 2000.0])
def test_a_splice_is_read_frame_by_frame(tmp_path: Path, start: float, decoded: list[float], whole: Callable) -> None:
    first = film(tmp_path / "first", "MPEG-2")
    times = every(seconds=SECONDS, start=start)
    second = write_film(
        tmp_path / "second.mpg", times=times, codec="mpeg2video", options={"bf": "2"}, paint=own_picture, tracks=()
    )
    spliced = tmp_path / "spliced.mpg"
    spliced.write_bytes(first.read_bytes() + second.read_bytes())
    assert read(spliced, 1.0) == whole(spliced, 1.0)
    decoded.clear()
    list(VideoReader(spliced))
    assert len([moment for moment in decoded if moment < SECONDS]) < 0.8 * SECONDS * 10
    assert len([moment for moment in decoded if moment > SECONDS]) > 0.9 * SECONDS * 10


@pytest.mark.parametrize("milliseconds", [11_100, 11_200, 11_300])
def test_a_frame_stays_where_the_next_one_is_cut_off(tmp_path: Path, milliseconds: int, whole: Callable) -> None:
    """An editor may write down that only a part is shown: the rest is decoded and thrown away."""
    path = patch_box(film(tmp_path / "film", "mp4"), b"elst", 8, big_endian(milliseconds))
    assert read(path, 1.0) == whole(path, 1.0)
    reader = VideoReader(path)
    assert len(list(reader)) == 11
    assert reader.end == pytest.approx(milliseconds / 1000)


def test_after_damage_every_frame_is_decoded(tmp_path: Path, decoded: list[float], whole: Callable) -> None:
    path = overwrite(film(tmp_path / "film", "broadcast"), 0.45, 0.5)
    frames, expected = read(path, 1.0), whole(path, 1.0)
    assert [frame[0] for frame in frames[:SECONDS]] == [frame[0] for frame in expected[:SECONDS]]
    assert frames[:6] == expected[:6]
    assert frames[9:SECONDS] == expected[9:SECONDS]
    decoded.clear()
    list(VideoReader(path))
    assert len([moment for moment in decoded if moment < 6]) < 0.8 * 60
    assert len([moment for moment in decoded if moment > 8]) == pytest.approx(60, abs=1)


@pytest.mark.parametrize(
    ("rate", "start", "end", "looks"),
    [
        (1.0, 0.90, 0.94, True),
        (1.0, 0.94, 0.98, False),
        (1.0, 0.9375, 0.98, True),
        (1.0, 0.94, 1.93, False),
        (1.0, 0.94, 1.94, True),
        (4.0, 0.24, 0.48, False),
        (4.0, 0.24, 0.50, True),
    ],
)
def test_a_sampler_tells_when_it_looks(rate: float, start: float, end: float, looks: bool) -> None:
    assert FrameSampler(rate, 25.0).looks_between(start, end) is looks
    assert FrameSampler(1.0, 25.0, counts=True).looks_between(start, end)
