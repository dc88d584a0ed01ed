"""Write mp4 and wav files: their content, the same bytes for the same input, nothing left after an error."""

import errno
import math
import resource
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from odd_media import Track, begin_late, every, onset, overwrite, write_odd_audio, write_odd_video

from modeling_pcmanet.media_pcmanet import MediaError, MediaReader, iterate_frames, read_audio, read_media
from modeling_pcmanet.media_writing_pcmanet import write_audio, write_timed_video, write_video


def smooth_frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Return color ramps that move."""
    rows, columns = np.mgrid[:height, :width]
    ramps = [(rows * 4 + 2 * index, columns * 3, np.full_like(rows, 120)) for index in range(count)]
    return [np.stack(ramp, axis=2).clip(0, 255).astype(np.uint8) for ramp in ramps]


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    """Return 440 Hz, (samples,)."""
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [25, 12.5, 30000 / 1001, 1])
def test_frames_come_back(tmp_path: Path, rate: float) -> None:
    frames = smooth_frames(12)
    write_video(tmp_path / "clip.mp4", frames, rate)
    timestamps, decoded = zip(*iterate_frames(tmp_path / "clip.mp4"), strict=True)
    np.testing.assert_allclose(timestamps, np.arange(12) / rate, atol=1e-4)
    assert np.abs(np.stack(decoded).astype(int) - np.stack(frames)).mean() < 3


def test_an_odd_size_repeats_the_last_row_and_column(tmp_path: Path) -> None:
    frames = smooth_frames(3, height=37, width=51)
    write_video(tmp_path / "odd.mp4", frames, 25)
    decoded = next(iterate_frames(tmp_path / "odd.mp4"))[1].astype(int)
    assert decoded.shape == (38, 52, 3)
    assert np.abs(decoded[37] - decoded[36]).mean() < 6
    assert np.abs(decoded[:37, :51] - frames[0]).mean() < 3


def test_the_file_is_in_the_format_that_browsers_play(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("height", [64, 720])
def test_colors_come_back_by_the_matrix_that_the_file_names(tmp_path: Path, height: int) -> None:
    path = tmp_path / "clip.mp4"
    colors = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)], np.uint8)
    frame = np.repeat(np.repeat(colors[None], height, axis=0), 32, axis=1)
    write_video(path, [frame, frame], 25)
    with av.open(str(path)) as container:
        decoded = next(container.decode(video=0))
        named, other = (
            decoded.reformat(format="rgb24", src_colorspace=matrix).to_ndarray()[height // 2, 16::32].astype(int)
            for matrix in (decoded.colorspace, Colorspace.ITU709)
        )
    np.testing.assert_allclose(named, colors, atol=6)
    assert np.abs(other - colors).max() > 20
    np.testing.assert_allclose(next(iterate_frames(path))[1][height // 2, 16::32], colors, atol=6)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
@pytest.mark.parametrize("seconds", [0.7, 1.0, 1.6])
def test_audio_of_any_length_comes_back(tmp_path: Path, rate: int, seconds: float) -> None:
    write_video(tmp_path / "clip.mp4", smooth_frames(25), 25, tone(rate, seconds), rate)
    media = read_media(tmp_path / "clip.mp4")
    assert media.sampling_rate == rate
    inside = slice(2048, round(rate * seconds) - 2048)
    np.testing.assert_allclose(media.waveform[0, inside], tone(rate, seconds)[inside], atol=0.025)


def test_channels_keep_their_order(tmp_path: Path) -> None:
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


def test_each_frame_keeps_its_time(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.35, 1.0, 1.02]
    write_timed_video(tmp_path / "clip.mp4", zip(times, smooth_frames(5, 35, 51), strict=True))
    read, frames = zip(*iterate_frames(tmp_path / "clip.mp4"), strict=True)
    assert read == pytest.approx(times, abs=1e-4)
    assert frames[0].shape == (36, 52, 3)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert not container.streams.audio


@pytest.mark.parametrize("times", [[0.0], [0.0, 5000.0], [0.0, 0.0, 1e-7, 0.2]])
def test_odd_times_are_written(tmp_path: Path, times: list[float]) -> None:
    write_timed_video(tmp_path / "clip.mp4", zip(times, smooth_frames(len(times)), strict=True))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(times, abs=1e-4)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(path, smooth_frames(30), 10, np.stack([tone(16000, 3), tone(16000, 3)]), 16000)
    return path


def packets_of(path: Path) -> tuple[list[float], list[bytes]]:
    """Return the times in seconds and the contents of the audio packets of a file."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
        return [float(packet.pts * packet.time_base) for packet in packets], [bytes(packet) for packet in packets]


def assert_same_packets(path: Path, source: Path) -> None:
    (times, contents), (source_times, source_contents) = packets_of(path), packets_of(source)
    assert contents == source_contents
    assert times == pytest.approx(source_times, abs=1e-4)


@pytest.mark.parametrize("form", [Path, str, Path.read_bytes, lambda path: path.open("rb")])
def test_audio_of_a_source_is_copied_packet_by_packet(tmp_path: Path, clip: Path, form: Callable) -> None:
    write_timed_video(tmp_path / "copy.mp4", iterate_frames(clip), form(clip))
    assert_same_packets(tmp_path / "copy.mp4", clip)


@pytest.mark.parametrize("track", [Track(seconds=12.0), Track("flac", start=1.5, seconds=12.0)])
@pytest.mark.parametrize("is_separate", [False, True])
def test_audio_after_the_last_frame_is_left_out(tmp_path: Path, track: Track, is_separate: bool) -> None:
    """It is not used, and a player would show the last frame for as long as it continues."""
    video, path = (
        write_odd_video(tmp_path / "video.mkv", times=every(seconds=2.0), tracks=[track]),
        tmp_path / "clip.mp4",
    )
    with MediaReader(video) as reader:
        frames = ((timestamp, frame) for timestamp, frame, _ in reader.frames("video"))
        audio = video if is_separate else (reader.audio_stream, reader.audio_packets())
        write_timed_video(path, frames, audio)
    with av.open(str(path)) as container:
        ends = {stream.type: float(stream.duration * stream.time_base) for stream in container.streams}
    assert ends == {"video": pytest.approx(2.0), "audio": pytest.approx(3.0 - track.start, abs=0.3)}


def test_a_frame_that_is_shown_for_long_keeps_its_audio(tmp_path: Path) -> None:
    video = write_odd_video(tmp_path / "video.mkv", times=[0.0, 0.1, 9.0], tracks=[Track(seconds=10.0)])
    write_timed_video(tmp_path / "copy.mp4", iterate_frames(video), video)
    assert_same_packets(tmp_path / "copy.mp4", video)


def test_frames_and_audio_can_come_from_one_open_container(tmp_path: Path, clip: Path) -> None:
    with av.open(str(clip)) as container:
        queues = {stream.type: deque() for stream in container.streams}
        demuxed = container.demux()

        def packets(kind: str) -> Iterator[av.Packet]:
            while True:
                while not queues[kind]:
                    packet = next(demuxed, None)
                    if packet is None:
                        return
                    queues[packet.stream.type].append(packet)
                yield queues[kind].popleft()

        frames = (frame for packet in packets("video") for frame in packet.decode())
        timed_frames = ((frame.time, frame.to_ndarray(format="rgb24")) for frame in frames)
        audio = (container.streams.audio[0], packets("audio"))
        write_timed_video(tmp_path / "copy.mp4", timed_frames, audio, audio_origin=lambda: 0.0)
    assert_same_packets(tmp_path / "copy.mp4", clip)
    assert len(list(iterate_frames(tmp_path / "copy.mp4"))) == 30


@pytest.mark.parametrize(
    ("suffix", "track", "sampling_rate", "channels"),
    [
        ("mkv", Track("pcm_s16le", 16000, "stereo"), 16000, 2),
        ("mkv", Track("flac", 96000, "mono"), 96000, 1),
        ("mkv", Track("flac", 10000, "mono"), 48000, 1),
        ("mkv", Track("pcm_s16le", 48000, "7.1"), 48000, 8),
        ("mkv", Track("pcm_s16le", 48000, "6.1"), 48000, 2),
        ("mp3", Track("libmp3lame", 8000, "mono"), 8000, 1),
    ],
    ids=lambda value: f"{value.codec}-{value.sampling_rate}-{value.layout}" if isinstance(value, Track) else None,
)
def test_audio_that_an_mp4_cannot_hold_is_encoded(
    tmp_path: Path, suffix: str, track: Track, sampling_rate: int, channels: int
) -> None:
    source = write_odd_audio(tmp_path / f"audio.{suffix}", track)
    frames = zip(np.arange(40) / 10, smooth_frames(40), strict=True)
    write_timed_video(tmp_path / "clip.mp4", frames, source)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.rate) == ("aac", sampling_rate)
        assert stream.layout.nb_channels == channels
    media = read_media(tmp_path / "clip.mp4")
    assert onset(media.waveform[:1], media.sampling_rate) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("codec", "layouts"), [("mp2", ("mono", "stereo")), ("aac", ("stereo", "stereo"))])
def test_audio_continues_where_a_broadcast_was_spliced(tmp_path: Path, codec: str, layouts: tuple[str, str]) -> None:
    """The times of the source go back at the splice, and its layout may change."""
    tracks = [Track(codec, 48000, layout) for layout in layouts]
    parts = [write_odd_video(tmp_path / f"{index}.ts", tracks=[track]) for index, track in enumerate(tracks)]
    video, path = tmp_path / "video.ts", tmp_path / "clip.mp4"
    video.write_bytes(b"".join(part.read_bytes() for part in parts))
    with MediaReader(video) as reader:
        frames = ((timestamp, frame) for timestamp, frame, _ in reader.frames("video"))
        audio = (reader.audio_stream, reader.audio_packets())
        write_timed_video(path, frames, audio, audio_origin=lambda: reader.origin)
    media = read_media(path)
    tenths = np.abs(media.waveform[0, : round(7.5 * media.sampling_rate)].reshape(75, -1)).max(axis=1) > 0.1
    np.testing.assert_allclose(np.flatnonzero(np.diff(tenths.astype(int))) / 10, [1.0, 4.0, 5.0], atol=0.21)


def test_audio_begins_at_the_first_frame_that_can_be_decoded(tmp_path: Path) -> None:
    """A recording that begins inside a group of frames declares a start without a frame."""
    video = begin_late(write_odd_video(tmp_path / "cut.ts", options={"x264-params": "keyint=8:scenecut=0"}), 0.05)
    path = tmp_path / "clip.mp4"
    with MediaReader(video) as reader:
        frames = ((timestamp, frame) for timestamp, frame, _ in reader.frames("video"))
        audio = (reader.audio_stream, reader.audio_packets())
        write_timed_video(path, frames, audio, audio_origin=lambda: reader.origin)
    onsets = [onset(media.waveform, media.sampling_rate) for media in (read_media(video), read_media(path))]
    assert onsets == pytest.approx([0.2, 0.2], abs=0.05)


def test_damaged_audio_packets_are_left_out(tmp_path: Path) -> None:
    track = Track(codec="mp2", sampling_rate=48000, layout="stereo", seconds=10)
    video = write_odd_video(tmp_path / "damaged.ts", times=every(seconds=10), tracks=[track])
    path = tmp_path / "clip.mp4"
    with MediaReader(overwrite(video, 0.4, 0.5)) as reader:
        frames = ((timestamp, frame) for timestamp, frame, _ in reader.frames("video"))
        audio = (reader.audio_stream, reader.audio_packets())
        write_timed_video(path, frames, audio, audio_origin=lambda: reader.origin)
    loud = []
    for media in (read_media(video), read_media(path)):
        tenths = media.waveform[0, : int(9.9 * media.sampling_rate)].reshape(99, -1)
        loud.append(np.abs(tenths).max(axis=1) > 0.1)
    assert 15 < (~loud[0]).sum() < 40
    assert (loud[0] == loud[1]).mean() > 0.95


def test_a_source_without_an_audio_track_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "silent.mp4", smooth_frames(5), 10)
    frames = zip(every(seconds=0.5), smooth_frames(5), strict=True)
    with pytest.raises(MediaError, match=r"silent\.mp4"):
        write_timed_video(tmp_path / "clip.mp4", frames, tmp_path / "silent.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["silent.mp4"]


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
def test_nothing_is_left_after_an_error(tmp_path: Path, frames: object, error: type[Exception]) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(error):
        write_video(path, frames(), 25, tone(16000), 16000)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"an earlier file")
    with pytest.raises(error):
        write_video(path, frames(), 25)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"an earlier file"]


def test_a_complete_file_replaces_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"an earlier file")
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
def test_a_wrong_frame_is_refused(tmp_path: Path, frame: object, received: str) -> None:
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
def test_a_wrong_waveform_is_refused(tmp_path: Path, waveform: np.ndarray, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        write_video(tmp_path / "clip.mp4", smooth_frames(2), 25, waveform, 16000)
    with pytest.raises(MediaError, match=message):
        write_audio(tmp_path / "sound.wav", waveform, 16000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [None, 0, -16000, 16000.5, 12345])
def test_a_sampling_rate_that_aac_does_not_support_is_refused(tmp_path: Path, rate: object) -> None:
    with pytest.raises(MediaError, match="sampling_rate must be one of .*16000.* hertz, got"):
        write_video(tmp_path / "clip.mp4", smooth_frames(2), 25, tone(16000), rate)


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_a_wrong_frame_rate_is_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        write_video(tmp_path / "clip.mp4", smooth_frames(2), rate)


@contextmanager
def small_disk() -> Iterator[None]:
    """Let this process write no more than 20 kB to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    """So that a run over many videos stops, and does not go on with videos whose overlays cannot be written either."""
    noise = np.random.default_rng(0).integers(0, 255, (8, 128, 128, 3), dtype=np.uint8)
    with pytest.raises(OSError, match=r"File too large: '.*clip\.mp4'") as raised, small_disk():
        write_video(tmp_path / "clip.mp4", noise, 25)
    assert raised.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_video(tmp_path / "nowhere" / "clip.mp4", smooth_frames(2), 25)
    with pytest.raises(MediaError, match=r"clip\.avi.*\.mp4"):
        write_video(tmp_path / "clip.avi", smooth_frames(2), 25)
    with pytest.raises(MediaError, match=r"sound\.mp3.*\.wav"):
        write_audio(tmp_path / "sound.mp3", tone(16000), 16000)


def test_wav_holds_16_bits_and_is_clipped_at_full_scale(tmp_path: Path) -> None:
    steps = np.array([[-32768, -32767, -1, 0, 1, 32767], [5, 4, 3, 2, 1, 0]])
    write_audio(tmp_path / "sound.wav", steps / 32768, np.int64(12345))
    waveform, rate = read_audio(tmp_path / "sound.wav")
    assert rate == 12345
    np.testing.assert_array_equal(waveform, steps / 32768)
    write_audio(tmp_path / "loud.wav", np.array([-3.0, 3.0], np.float32), 16000)
    np.testing.assert_array_equal(read_audio(tmp_path / "loud.wav")[0], [[-1.0, 32767 / 32768]])
