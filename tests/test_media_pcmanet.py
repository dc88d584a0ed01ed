"""Reading: which frames are taken and when they are, where the sound lies, what odd and broken files give. Two doors into one file, moments of masks, and memory that does not grow."""

import io
import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from modeling_pcmanet import media_pcmanet
from modeling_pcmanet.media_pcmanet import (
    MediaError,
    VideoReader,
    iterate_frames,
    iterate_sound,
    join_moments,
    read_audio,
    read_media,
    stream_array,
    two_doors,
    write_audio,
    write_video,
)


NTSC = 30000 / 1001
BARS = 9


def number_picture(number: int, height: int = 32, width: int = 72) -> np.ndarray:
    """A frame that carries a number as black and white bars."""
    bits = (number >> np.arange(BARS)) & 1
    return np.broadcast_to(np.repeat(bits * 255, width // BARS).astype(np.uint8)[None, :, None], (height, width, 3))


def number_pictures(count: int) -> Iterator[np.ndarray]:
    return (number_picture(number) for number in range(count))


def numbers(frames: np.ndarray) -> list[int]:
    """Reads the numbers back from frames (frames, height, width, 3)."""
    bars = frames.reshape(len(frames), frames.shape[1], BARS, -1).mean(axis=(1, 3)) > 127
    return (bars << np.arange(BARS)).sum(axis=1).tolist()


def tone(seconds: float, rate: int = 48000, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_streams(
    path: Path,
    times: Sequence[float],
    chunks: Sequence[tuple[float, np.ndarray]] = (),
    *,
    codecs: tuple[str, str] = ("libx264", "pcm_f32le"),
    rate: int = 48000,
    layout: str = "mono",
    size: tuple[int, int] = (72, 32),
    declared: Fraction = Fraction(25),
) -> Path:
    """Writes numbered frames at any times, and chunks of sound (samples,) or (channels, samples) at any times."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codecs[0], rate=declared, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream(codecs[1], rate=rate, layout=layout) if chunks else None
        for number, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(number_picture(number, size[1], size[0]), format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for seconds, samples in chunks:
            packed = np.atleast_2d(samples).T.reshape(1, -1).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.pts, frame.time_base, frame.sample_rate = round(seconds * rate), Fraction(1, rate), rate
            container.mux(audio.encode(frame))
        if audio:
            container.mux(audio.encode())
    return path


def every(period: float, count: int, start: float = 0.0) -> list[float]:
    return [start + period * index for index in range(count)]


# --- Which frames ---


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (25, [23, 48, 73, 98, 123]),
        (30, [28, 58, 88, 118, 148]),
        (NTSC, [28, 58, 88, 118, 148]),
        (24000 / 1001, [22, 46, 70, 94, 118]),
        (16, [15, 31, 47, 63, 79]),
        (12.5, [11, 23, 35, 47, 59]),
        (10, [9, 19, 29, 39, 49]),
    ],
)
def test_each_second_gives_the_frame_of_avsbench(tmp_path: Path, rate: float, expected: list[int]) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(math.ceil(5 * rate)), rate)
    media = read_media(tmp_path / "clip.mp4", audio=False)
    assert numbers(media.frames) == expected == [int((second + 15 / 16) * round(rate)) for second in range(5)]
    np.testing.assert_allclose(media.timestamps, np.array(expected) / rate, atol=1e-4)
    assert media.frames.dtype == np.uint8 and media.timestamps.dtype == np.float64
    assert media.waveform is None and media.sampling_rate is None


@pytest.mark.parametrize(("suffix", "codecs"), [(".mkv", ("libx264", "pcm_s16le")), (".webm", ("libvpx", "libopus"))])
def test_containers_that_round_their_timestamps_give_the_frame_of_avsbench(
    tmp_path: Path, suffix: str, codecs: tuple[str, str]
) -> None:
    chunks = [(0.0, tone(10.0))]
    declared = Fraction(30000, 1001)
    path = write_streams(tmp_path / f"clip{suffix}", every(1 / NTSC, 300), chunks, codecs=codecs, declared=declared)
    assert numbers(read_media(path).frames) == [int((second + 15 / 16) * 30) for second in range(10)]


def test_a_container_that_lies_about_its_rate_goes_by_timestamps(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "clip.mkv", every(1 / 50, 250), declared=Fraction(25))
    assert numbers(read_media(path, audio=False).frames) == [46, 96, 146, 196, 246]


def test_a_video_longer_than_a_clip_goes_by_the_clock(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", number_pictures(390), NTSC)
    media = read_media(tmp_path / "long.mp4", audio=False)
    assert numbers(media.frames) == [int((second + 15 / 16) * NTSC) for second in range(13)]
    assert numbers(media.frames)[-1] == int(12.9375 * 30) - 1


def test_seconds_that_the_video_does_not_reach_take_its_last_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "short.mp4", number_pictures(141), 30)
    assert numbers(read_media(tmp_path / "short.mp4", audio=False).frames) == [28, 58, 88, 118, 140]


def test_the_picture_and_not_the_sound_decides_the_number_of_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(125), 25, tone(5.6, 44100), 44100)
    media = read_media(tmp_path / "clip.mp4")
    assert len(media.frames) == 5
    assert media.waveform.shape[1] >= 5.6 * 44100


@pytest.mark.parametrize(
    ("frames_per_second", "expected"),
    [
        (2, [11, 24, 36, 49]),
        (25, list(range(50))),
        (50, [index // 2 for index in range(100)]),
        (0.5, [46]),
        (0.1, [49]),
    ],
)
def test_any_rate_takes_the_frame_on_screen(tmp_path: Path, frames_per_second: float, expected: list[int]) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(50), 25)
    media = read_media(tmp_path / "clip.mp4", frames_per_second=frames_per_second, audio=False)
    assert numbers(media.frames) == expected


def test_every_frame_of_an_ntsc_clip_is_taken_once_at_its_own_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(150), NTSC)
    assert numbers(read_media(tmp_path / "clip.mp4", frames_per_second=NTSC, audio=False).frames) == list(range(150))


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf])
def test_an_impossible_rate_is_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        read_media(tmp_path / "any.mp4", frames_per_second=rate)


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", [number_picture(5)], 25)
    media = read_media(tmp_path / "one.mp4", audio=False)
    assert numbers(media.frames) == [5]
    assert media.timestamps.tolist() == [0.0]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_rate_goes_by_timestamps(tmp_path: Path, suffix: str) -> None:
    # A burst, then a picture that stands still from 0.5 s to 3.6 s, then a burst.
    times = [*every(0.05, 11), *every(0.05, 8, start=3.6)]
    media = read_media(write_streams(tmp_path / f"screen{suffix}", times), audio=False)
    assert numbers(media.frames) == [10, 10, 10, 17]
    np.testing.assert_allclose(media.timestamps, [0.9375, 1.9375, 2.9375, 3.9375], atol=0.06)
    assert media.timestamps[:3].tolist() == [0.9375, 1.9375, 2.9375]


def test_frames_that_would_not_fit_in_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(50), 25)
    monkeypatch.setattr(media_pcmanet, "LARGEST_FRAMES_BYTES", 2 * number_picture(0).size)
    assert len(read_media(tmp_path / "clip.mp4", audio=False).frames) == 2
    with pytest.raises(MediaError, match=r"clip\.mp4 gives more than 2 frames of 72x32.*frames_per_second"):
        read_media(tmp_path / "clip.mp4", frames_per_second=2, audio=False)


def test_iterate_frames_yields_every_frame_with_its_time(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(40), NTSC)
    timestamps, frames = zip(*iterate_frames(tmp_path / "clip.mp4"), strict=True)
    assert numbers(np.stack(frames)) == list(range(40))
    np.testing.assert_allclose(timestamps, np.arange(40) / NTSC, atol=1e-4)


# --- Where the sound lies ---


@pytest.mark.parametrize(
    ("video_start", "sound_start", "offset"), [(0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.25, 0.0, -0.25), (2.0, 2.0, 0.0)]
)
def test_sound_is_laid_on_the_clock_of_the_video(
    tmp_path: Path, video_start: float, sound_start: float, offset: float
) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 48000).astype(np.float32)
    chunks = [(sound_start + 0.1 * index, piece) for index, piece in enumerate(np.split(sound, 10))]
    path = write_streams(tmp_path / "clip.mkv", every(0.04, 50, start=video_start), chunks)
    media = read_media(path)
    shift = round(offset * 48000)
    expected = np.concatenate([np.zeros(max(0, shift)), sound[max(0, -shift) :]]).astype(np.float32)
    np.testing.assert_array_equal(media.waveform[0, : len(expected)], expected)
    assert not media.waveform[0, len(expected) :].any()
    assert media.timestamps[0] == pytest.approx(0.92)


def test_a_hole_in_the_sound_becomes_silence(tmp_path: Path) -> None:
    chunks = [(0.0, tone(0.5)), (1.2, tone(0.5))]
    media = read_media(write_streams(tmp_path / "clip.mkv", every(0.04, 50), chunks))
    expected = np.concatenate([tone(0.5), np.zeros(round(0.7 * 48000)), tone(0.5)])
    np.testing.assert_array_equal(media.waveform[0], expected.astype(np.float32))


def test_sound_beyond_a_hole_that_reaches_past_the_picture_is_left_out(tmp_path: Path) -> None:
    chunks = [(0.0, tone(0.5)), (400.0, tone(0.5))]
    media = read_media(write_streams(tmp_path / "clip.mkv", every(0.04, 50), chunks))
    assert media.waveform.shape == (1, 96000)
    np.testing.assert_array_equal(media.waveform[0, :24000], tone(0.5))
    assert not media.waveform[0, 24000:].any()


def test_rounded_timestamps_tear_no_holes_into_the_sound(tmp_path: Path) -> None:
    sound = tone(2.0, 44100)
    chunks = [(start / 44100, sound[start : start + 1000]) for start in range(0, len(sound), 1000)]
    media = read_media(write_streams(tmp_path / "clip.mkv", every(0.04, 50), chunks, rate=44100))
    np.testing.assert_array_equal(media.waveform[0], sound)


def test_aac_starts_at_its_first_sample(tmp_path: Path) -> None:
    sound = np.concatenate([np.zeros(24000, np.float32), tone(1.5)])
    write_video(tmp_path / "clip.mp4", number_pictures(50), 25, sound, 48000)
    media = read_media(tmp_path / "clip.mp4")
    assert media.sampling_rate == 48000
    np.testing.assert_allclose(media.waveform[0, 30000:90000], sound[30000:90000], atol=0.005)


# --- Sound of every kind ---


@pytest.mark.parametrize(
    ("suffix", "codec", "tolerance"),
    [
        (".wav", "pcm_u8", 1 / 128),
        (".wav", "pcm_s16le", 1 / 32768),
        (".wav", "pcm_s24le", 1e-6),
        (".wav", "pcm_s32le", 1e-7),
        (".wav", "pcm_f32le", 0.0),
        (".wav", "pcm_f64le", 0.0),
        (".flac", "flac", 1 / 32768),
        (".mp3", "libmp3lame", 0.03),
        (".ogg", "libopus", 0.03),
    ],
)
def test_sound_files_give_floats_at_full_scale(tmp_path: Path, suffix: str, codec: str, tolerance: float) -> None:
    path = tmp_path / f"sound{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout="stereo")
        packed = np.stack([tone(1.0), -tone(1.0, frequency=880.0)]).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format="flt", layout="stereo")
        frame.sample_rate = 48000
        container.mux([*stream.encode(frame), *stream.encode()])
    waveform, sampling_rate = read_audio(path)
    assert (sampling_rate, waveform.dtype, waveform.shape) == (48000, np.float32, (2, 48000))
    inside = slice(2000, 46000)
    np.testing.assert_allclose(waveform[0, inside], tone(1.0)[inside], atol=tolerance)
    np.testing.assert_allclose(waveform[1, inside], -tone(1.0, frequency=880.0)[inside], atol=tolerance)


def test_floating_sound_beyond_full_scale_is_not_cut(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "loud.mkv", every(0.04, 25), [(0.0, 6 * tone(1.0))])
    np.testing.assert_array_equal(read_audio(path)[0][0], 6 * tone(1.0))


@pytest.mark.parametrize(("channels", "layout"), [(1, "mono"), (2, "stereo"), (6, "5.1"), (8, "7.1"), (3, "3.0")])
@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_every_channel_keeps_its_place(tmp_path: Path, channels: int, layout: str, rate: int) -> None:
    sound = np.arange(1, channels + 1)[:, None] * np.ones((channels, rate // 4)) / 16
    path = write_streams(tmp_path / "clip.mkv", every(0.04, 10), [(0.0, sound)], rate=rate, layout=layout)
    media = read_media(path)
    assert media.sampling_rate == rate
    np.testing.assert_array_equal(media.waveform, sound.astype(np.float32))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    sound = tone(1.0)
    sound[[1234, 2000]] = bad
    path = write_streams(tmp_path / "broken.mkv", every(0.04, 25), [(0.0, sound)])
    with pytest.raises(MediaError, match=r"broken\.mkv: 2 samples .* NaN or infinite, the first is number 1234"):
        read_media(path)
    assert len(read_media(path, audio=False).frames) == 1


# --- What is missing, broken or changes under way ---


def test_a_silent_film_says_how_to_give_the_sound(tmp_path: Path) -> None:
    write_video(tmp_path / "silent.mp4", number_pictures(25), 25)
    with pytest.raises(MediaError, match=r"silent\.mp4 has no sound track\. .*`audio=`.*`sampling_rate=`"):
        read_media(tmp_path / "silent.mp4")
    with pytest.raises(MediaError, match="no sound track"):
        read_audio(tmp_path / "silent.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    write_audio(tmp_path / "sound.wav", tone(1.0), 48000)
    for read in (read_media, lambda source: next(iterate_frames(source))):
        with pytest.raises(MediaError, match=r"sound\.wav has no video stream"):
            read(tmp_path / "sound.wav")


def test_a_sound_track_that_only_comes_before_the_picture_is_none(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "early.mkv", every(0.04, 25, start=1.0), [(0.0, tone(0.5))])
    with pytest.raises(MediaError, match=r"early\.mkv: its sound track holds no sound\. .*`audio=`"):
        read_media(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_of_a_truncated_file_the_beginning_is_used(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".mp4":
        write_video(whole, number_pictures(250), 25, tone(10.0), 48000)
    else:
        chunks = [(second, tone(1.0)) for second in range(10)]
        write_streams(whole, every(0.04, 250), chunks, codecs=("libx264", "aac"))
    data = whole.read_bytes()
    media = read_media(data[: len(data) * 6 // 10])
    assert 1 <= len(media.frames) < 10
    assert numbers(media.frames) == [int((second + 15 / 16) * 25) for second in range(len(media.frames))][:-1] + [
        numbers(media.frames)[-1]
    ]


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "cut.mp4", every(0.04, 50), codecs=("libx264", "aac"))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(MediaError, match=r"cut\.mp4 cannot be read .*whole media file"):
        read_media(path)


def test_damage_in_the_middle_costs_the_middle_only(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(250), 25, tone(10.0), 48000)
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    media = read_media(bytes(data))
    assert len(media.frames) == 10
    assert numbers(media.frames)[0] == 23
    assert media.waveform.shape[1] == pytest.approx(480000, abs=2048)


def test_a_video_without_a_frame_is_refused(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "empty.mkv", every(0.04, 25), [(0.0, tone(1.0))], codecs=("mpeg4", "pcm_f32le"))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in packets:
        data[position : position + size + 8] = bytes(size + 8)
    with pytest.raises(MediaError):
        read_media(bytes(data))


def test_a_broadcast_may_add_a_sound_track(tmp_path: Path) -> None:
    first = write_streams(tmp_path / "a.ts", every(0.04, 50))
    second = write_streams(tmp_path / "b.ts", every(0.04, 50, 2.0), [(2.0, tone(2.0))], codecs=("libx264", "aac"))
    media = read_media(first.read_bytes() + second.read_bytes(), audio=False)
    assert numbers(media.frames) == [23, 48, 23, 48]


def test_a_broadcast_may_change_its_size_and_its_channels(tmp_path: Path) -> None:
    codecs = ("libx264", "aac")
    first = write_streams(
        tmp_path / "a.ts", every(0.04, 50), [(0.0, np.stack([tone(2.0)] * 2))], codecs=codecs, layout="stereo"
    )
    second = write_streams(tmp_path / "b.ts", every(0.04, 50, 2.0), [(2.0, tone(2.0))], codecs=codecs, size=(144, 64))
    media = read_media(first.read_bytes() + second.read_bytes())
    assert numbers(media.frames) == [23, 48, 23, 48]
    assert media.frames.shape == (4, 32, 72, 3)
    assert media.waveform.shape[0] == 2
    assert media.waveform.shape[1] == pytest.approx(4 * 48000, abs=4096)


RATE = 16_000
PICTURE = np.zeros((4, 6, 3), np.uint8)


def tone_of_media_stream(seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)[None].astype(np.float32)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(
        path,
        np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None, None] * 5, (50, 32, 48, 3)),
        10,
        tone_of_media_stream(5),
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
    write_audio(tmp_path / "sound.wav", tone_of_media_stream(2), RATE)
    waveform = np.concatenate([piece for piece, _ in iterate_sound(tmp_path / "sound.wav")], axis=1)
    np.testing.assert_array_equal(waveform, read_audio(tmp_path / "sound.wav")[0])


def test_what_has_no_picture_or_no_sound_is_refused(tmp_path: Path):
    write_audio(tmp_path / "sound.wav", tone_of_media_stream(1), RATE)
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
