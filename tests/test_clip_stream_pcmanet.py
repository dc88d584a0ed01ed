"""Clips of every kind as streams: the same frames, sound and errors as of a whole read."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from modeling_pcmanet.clip_stream_pcmanet import LiveClip, check_settings, open_clip
from modeling_pcmanet.media_pcmanet import MediaError, read_media, write_audio, write_video


RATE = 44_100
SIZE = {"height": 32, "width": 48}


def pictures(number: int) -> np.ndarray:
    """Frames that tell their number by their grey."""
    return np.broadcast_to(np.arange(number, dtype=np.uint8)[:, None, None, None] * 2, (number, 48, 64, 3))


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.1, (channels, round(seconds * rate))).astype(np.float32)


@pytest.fixture(scope="module")
def processor() -> PCMANetProcessor:
    return PCMANetProcessor(PCMANetImageProcessor(size=SIZE), PCMANetFeatureExtractor())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "short.mp4", pictures(50), 10, noise(5), RATE)
    write_video(folder / "long.mp4", pictures(120), 10, noise(12, channels=2), RATE)
    write_video(folder / "sound_ends.mp4", pictures(120), 10, noise(3), RATE)
    write_video(folder / "silent.mp4", pictures(40), 10)
    write_audio(folder / "sound.wav", noise(4, 16_000), 16_000)
    return folder


def assert_streams_as_called(processor: PCMANetProcessor, video, audio=None, *, stream_video=None, **settings) -> None:
    frames = list(processor.stream(video if stream_video is None else stream_video, audio, **settings))
    batch = processor(video, audio, **settings, return_metadata=True)
    assert [frame["timestamp"] for frame in frames] == pytest.approx(batch["timestamps"][0])
    assert torch.equal(torch.stack([frame["pixel_values"] for frame in frames]), batch["pixel_values"][0])
    heard = torch.stack([frame["input_features"] for frame in frames])
    torch.testing.assert_close(heard, batch["input_features"][0], rtol=0, atol=1e-6)
    assert {tuple(frame["original_size"]) for frame in frames} == set(batch["original_sizes"])
    assert [frame["mask_timestamps"] for frame in frames] == [(frame["timestamp"],) for frame in frames]


@pytest.mark.parametrize("name", ["short.mp4", "long.mp4", "sound_ends.mp4"])
@pytest.mark.parametrize(
    "settings", [{}, {"frames_per_second": 3}, {"patching": "aligned"}, {"patching": "consecutive"}]
)
def test_a_file(processor, folder, name, settings):
    assert_streams_as_called(processor, folder / name, **settings)


@pytest.mark.parametrize("kind", ["bytes", "file object", "pipe"])
def test_other_sources(processor, folder, kind):
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    data = (folder / "long.mp4").read_bytes()
    source = {"bytes": data, "file object": io.BytesIO(data), "pipe": Pipe(data)}[kind]
    assert_streams_as_called(processor, data, stream_video=source)
    assert not getattr(source, "closed", False)


def test_sound_from_elsewhere(processor, folder):
    assert_streams_as_called(processor, folder / "silent.mp4", noise(4), sampling_rate=RATE)
    assert_streams_as_called(processor, folder / "silent.mp4", folder / "sound.wav")
    assert_streams_as_called(processor, folder / "long.mp4", noise(12.3, 8000), sampling_rate=8000)


def test_frames_in_memory(processor):
    assert_streams_as_called(processor, pictures(4), noise(4), sampling_rate=RATE)
    assert_streams_as_called(processor, pictures(4), noise(60), sampling_rate=RATE, timestamps=[3.0, 10.5, 20, 59.9])
    assert_streams_as_called(processor, pictures(30), noise(15), sampling_rate=RATE, frames_per_second=2)


def test_every_frame_of_a_file(processor, folder):
    frames = list(processor.stream(folder / "short.mp4", frames_per_second="video"))
    assert [frame["timestamp"] for frame in frames] == pytest.approx(np.arange(50) / 10)
    media = read_media(folder / "short.mp4", frames_per_second=10)
    expected = processor.image_processor(media.frames[20], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(frames[20]["pixel_values"], expected)


@pytest.mark.parametrize(("rate", "number"), [("video", 120), (4, 48), (0.5, 6)])
def test_moments_of_masks(processor, folder, rate, number):
    frames = list(processor.stream(folder / "long.mp4", masks_per_second=rate))
    moments = [moment for frame in frames for moment in frame["mask_timestamps"]]
    expected = (
        np.arange(120) / 10 if rate == "video" else read_media(folder / "long.mp4", frames_per_second=rate).timestamps
    )
    assert moments == pytest.approx(expected)
    assert len(moments) == number
    for before, after in zip([{"timestamp": -1.0}, *frames[:-2]], frames[:-1], strict=True):
        assert all(before["timestamp"] < moment <= after["timestamp"] for moment in after["mask_timestamps"])


def test_moments_of_masks_for_frames_in_memory(processor):
    arguments = (pictures(4), noise(4))
    frames = list(processor.stream(*arguments, sampling_rate=RATE, masks_per_second=2))
    moments = [moment for frame in frames for moment in frame["mask_timestamps"]]
    assert moments == pytest.approx((np.arange(8) + 15 / 16) / 2)
    frames = list(processor.stream(*arguments, sampling_rate=RATE, masks_per_second="video"))
    assert [frame["mask_timestamps"] for frame in frames] == [(frame["timestamp"],) for frame in frames]


@pytest.mark.parametrize(
    ("video", "arguments", "message"),
    [
        ("silent.mp4", {}, r"silent\.mp4 has no sound track.*audio="),
        ("silent.mp4", {"audio": noise(9), "sampling_rate": RATE}, r"silent\.mp4.*40? frames|4 frames.*sound lasts"),
        ("silent.mp4", {"audio": noise(1), "sampling_rate": RATE}, r"silent\.mp4.*sound lasts 1\.000 s"),
        ("silent.mp4", {"audio": noise(4)}, "sampling_rate is missing"),
        ("short.mp4", {"timestamps": [1.0]}, "leave them out"),
        ("short.mp4", {"frames_per_second": 0}, "frames_per_second is 0"),
        ("short.mp4", {"frames_per_second": "all"}, "frames_per_second is 'all'.*\"video\""),
        ("short.mp4", {"masks_per_second": -1}, "masks_per_second is -1"),
        ("short.mp4", {"frames_per_second": True}, "frames_per_second is True: expected a number"),
        ("short.mp4", {"patching": "centred"}, "patching is 'centred': expected one of"),
        ("short.mp4", {"frames_per_second": 2, "patching": "consecutive"}, "frames_per_second is 2.*trailing"),
    ],
)
def test_what_cannot_be_used_is_refused(processor, folder, video, arguments, message):
    with pytest.raises(ValueError, match=message):
        list(processor.stream(folder / video, **arguments))


@pytest.mark.parametrize("rate", [np.int64(2), np.float32(2), Fraction(2)])
def test_every_kind_of_number_is_a_rate(processor, folder, rate):
    assert check_settings(rate, rate) == (2.0, 2.0)
    assert processor(folder / "short.mp4", frames_per_second=rate)["pixel_values"].shape[1] == 10
    assert len(list(processor.stream(folder / "short.mp4", frames_per_second=rate))) == 10


def test_frames_in_memory_that_cannot_be_used_are_refused(processor):
    with pytest.raises(ValueError, match="go back in time"):
        list(processor.stream(pictures(2), noise(4), sampling_rate=RATE, timestamps=[2.0, 1.0]))
    with pytest.raises(ValueError, match='"video" is for video files'):
        list(processor.stream(pictures(2), noise(2), sampling_rate=RATE, frames_per_second="video"))
    with pytest.raises(ValueError, match="no sound track"):
        list(processor.stream(pictures(2)))


def test_files_that_are_none(processor, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        list(processor.stream(tmp_path / "missing.mp4"))
    with pytest.raises(FileNotFoundError, match="missing.wav"):
        list(processor.stream(folder / "silent.mp4", tmp_path / "missing.wav"))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError, match="text.mp4"):
        list(processor.stream(tmp_path / "text.mp4"))


def test_files_are_closed_however_a_stream_ends(folder):
    def open_files() -> list[str]:
        return [str(entry.resolve()) for entry in Path("/proc/self/fd").iterdir()]

    with open_clip(folder / "long.mp4", target_rate=16_000) as (frames, sound):
        next(frames)
        assert sound.reaches(1000)
        assert str(folder / "long.mp4") in open_files()
    assert str(folder / "long.mp4") not in open_files()


def live_chunks(seconds: int, camera_rate: int = 20):
    """A camera, and a microphone that gives a tenth of a second at a time."""
    sound = noise(seconds, 16_000)[0]
    for tenth in range(10 * seconds):
        times = [(tenth * camera_rate / 10 + frame) / camera_rate for frame in range(camera_rate // 10)]
        yield list(pictures(256)[:: 256 // len(times)][: len(times)]), times, sound[1600 * tenth : 1600 * (tenth + 1)]


@pytest.mark.parametrize("rate", [1, 4])
@pytest.mark.parametrize("patching", ["trailing", "aligned"])
def test_live_input_is_heard_as_a_file(processor, rate, patching):
    frames = list(
        processor.stream_live(live_chunks(6), sampling_rate=16_000, frames_per_second=rate, patching=patching)
    )
    times = [frame["timestamp"] for frame in frames]
    moments = (np.arange(6 * rate) + 15 / 16) / rate
    assert times == pytest.approx(np.floor(moments * 20 + 1e-9) / 20)
    expected = PCMANetFeatureExtractor()(noise(6, 16_000), 16_000, timestamps=times, patching=patching)
    np.testing.assert_allclose(
        np.stack([frame["input_features"] for frame in frames]), expected["input_features"], atol=1e-6
    )


def test_live_input_without_pictures_or_sound_for_a_while():
    chunks = [([], [], np.zeros(4000)), (pictures(1), [0.1], None), (None, None, np.zeros((2, 4000)))]
    clip = LiveClip(chunks, 16_000, 1.0, 16_000)
    assert [frame.timestamp for frame in clip.frames] == [0.1]
    assert not clip.sound.reaches(10_000)
    assert clip.sound.length == 8000


def test_live_input_that_cannot_be_used_is_refused(processor):
    with pytest.raises(ValueError, match='"trailing" or "aligned" for live'):
        list(processor.stream_live(live_chunks(1), sampling_rate=16_000, patching="consecutive"))
    with pytest.raises(ValueError, match="2 timestamps for 1 frames"):
        list(processor.stream_live([(pictures(1), [0.0, 1.0], None)], sampling_rate=16_000))
    with pytest.raises(ValueError, match="sampling_rate is missing"):
        list(processor.stream_live(live_chunks(1), sampling_rate=None))
    with pytest.raises(ValueError, match="frames_per_second is 'video': expected a number above 0\\."):
        list(processor.stream_live(live_chunks(1), sampling_rate=16_000, frames_per_second="video"))


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ((pictures(1), [0.0]), "frames, their timestamps and sound .*got 2 things"),
        (noise(1), "frames, their timestamps and sound .*got a ndarray"),
        ((pictures(1), [0.0], None), "no sound came with the frames"),
        ((pictures(1), [0.0], [0.0, 0.1]), "audio is a list: give a numpy array"),
        ((pictures(1), [0.0], []), "no sound came with the frames"),
    ],
)
def test_live_chunks_that_cannot_be_used_are_refused(processor, chunk, message):
    with pytest.raises(ValueError, match=message):
        list(processor.stream_live([chunk], sampling_rate=16_000))
