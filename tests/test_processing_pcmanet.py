"""The processor: clips of every kind, streamed and collected, live input, batches, masks from logits."""

import io
import json
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from odd_media import Track, overwrite, write_odd_audio
from PIL import Image
from torch.nn import functional
from transformers import AutoProcessor, Wav2Vec2FeatureExtractor

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor, processing_pcmanet
from modeling_pcmanet.audio_pcmanet import AudioBuffer, _resampling_kernel
from modeling_pcmanet.media_pcmanet import MediaError, read_media
from modeling_pcmanet.media_writing_pcmanet import write_audio, write_video
from modeling_pcmanet.processing_pcmanet import (
    LiveClip,
    _in_pieces,
    check_settings,
    choose_audio_alignment,
    fill_maps,
    is_clip,
    open_clip,
    share_audio,
    stack_frames,
)


FRAMES = np.random.default_rng(0).integers(0, 256, (4, 34, 46, 3), dtype=np.uint8)
SOUND = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 4 * 16000))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    frames = [np.full((48, 64, 3), 20 * second, np.uint8) for second in range(4) for _ in range(10)]
    write_video(path, frames, 10, SOUND.astype(np.float32), 16000)
    return path


@pytest.fixture(scope="module")
def silent_video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("media") / "silent.mp4"
    write_video(path, [np.zeros((48, 64, 3), np.uint8)] * 40, 10)
    return path


@pytest.mark.parametrize("length", [1, 100, 160_000, 1_000_001])
def test_pieces_make_up_the_waveform(length):
    waveform, rate = np.random.default_rng(0).uniform(-1, 1, (2, length)), 16000
    pieces = list(_in_pieces(waveform, rate))
    np.testing.assert_array_equal(np.concatenate([piece for piece, _ in pieces], axis=1), waveform)
    assert max(piece.shape[1] for piece, _ in pieces) < 21 * rate


@pytest.mark.parametrize(
    ("videos", "expected"),
    [
        ("clip.mp4", True),
        (Path("clip.mp4"), True),
        (b"bytes", True),
        (io.BytesIO(), True),
        (FRAMES, True),
        (list(FRAMES), True),
        ([Image.fromarray(FRAMES[0])], True),
        (["a.mp4", FRAMES], False),
        ([FRAMES], False),
        ([list(FRAMES)], False),
        (FRAMES[None], False),
        ([], False),
    ],
)
def test_one_clip_is_told_from_a_list_of_clips(videos, expected):
    assert is_clip(videos) is expected


@pytest.mark.parametrize(
    "frames",
    [
        FRAMES,
        FRAMES.transpose(0, 3, 1, 2),
        torch.from_numpy(FRAMES),
        list(FRAMES),
        [torch.from_numpy(frame).permute(2, 0, 1) for frame in FRAMES],
        [Image.fromarray(frame) for frame in FRAMES],
        [Image.fromarray(frame).convert("RGBA") for frame in FRAMES],
    ],
    ids=["array", "channels first", "tensor", "list", "list of tensors", "PIL", "PIL RGBA"],
)
def test_frames_of_any_kind_become_one_array(frames):
    stacked = stack_frames(frames)
    assert stacked.dtype == np.uint8
    np.testing.assert_array_equal(stacked, FRAMES)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (FRAMES.astype(np.float32) / 255, "float32.*uint8.*255"),
        (FRAMES.astype(np.int64), "int64.*uint8 values 0..255. Cast integers"),
        ([Image.fromarray(FRAMES[0, :, :, 0].astype(np.uint16) * 257)], "8 bits per channel.*'I;16'"),
        (FRAMES[:0], r"\(0, 34, 46, 3\).*at least one"),
        (FRAMES[0], r"\(34, 46, 3\).*list of one"),
        (FRAMES[..., :1], r"\(4, 34, 46, 1\).*three times"),
        ([FRAMES[0], FRAMES[1, :10]], "of one size.*shapes"),
        ({"path": "clip.mp4"}, "got dict"),
        (["a.mp4", "b.mp4"], "Expected one clip, got a list of 2 str. Pass one video"),
        (None, "got NoneType"),
    ],
)
def test_unusable_frames_are_refused_with_a_remedy(frames, message):
    with pytest.raises(ValueError, match=message):
        stack_frames(frames)


def read(video, audio=None, **settings) -> tuple[list[tuple[float, np.ndarray]], AudioBuffer]:
    """Read a clip to its end, at the rate of its audio."""
    with open_clip(video, audio, target_rate=16_000, **settings) as (streamed, buffer):
        read_frames = [(timestamp, frame) for timestamp, frame, _ in streamed]
        buffer.reaches(2**62)
    return read_frames, buffer


def test_a_video_has_frames_timestamps_and_audio(video):
    read_frames, audio = read(video)
    timestamps, frames = zip(*read_frames, strict=True)
    np.testing.assert_allclose(np.stack(frames).mean(axis=(1, 2, 3)), [0, 20, 40, 60], atol=3)
    np.testing.assert_allclose(timestamps, [0.9, 1.9, 2.9, 3.9], atol=1e-6)
    assert audio.length == pytest.approx(64000, abs=1024)  # AAC works in blocks of 1,024 samples


def test_one_file_object_as_video_and_audio_is_its_own_audio(video):
    read_frames, audio = read(video)
    with video.open("rb") as file:
        same_frames, same_audio = read(file, file)
    assert [timestamp for timestamp, _ in same_frames] == [timestamp for timestamp, _ in read_frames]
    assert all(np.array_equal(frame, same) for (_, frame), (_, same) in zip(read_frames, same_frames, strict=True))
    assert torch.equal(same_audio.cut(0, same_audio.length), audio.cut(0, audio.length))


@pytest.mark.parametrize("kind", ["array", "row", "path", "bytes", "file object"])
def test_separate_audio_replaces_that_of_the_video(video, tmp_path, kind):
    waveform = np.sin(np.arange(4 * 16000) / 3)
    path = tmp_path / "audio.wav"
    write_audio(path, waveform, 16000)
    audio = {
        "array": waveform,
        "row": Dataset.from_list([{"audio": {"array": waveform, "sampling_rate": 16000}}])[0]["audio"],
        "path": path,
        "bytes": path.read_bytes(),
        "file object": io.BytesIO(path.read_bytes()),
    }[kind]
    _, buffer = read(video, audio, sampling_rate=16000)
    np.testing.assert_allclose(buffer.cut(0, 64000), waveform, atol=1e-4)
    assert buffer.length == 64000


@pytest.mark.parametrize("seconds", [1.0, 7.5, 600.0])
@pytest.mark.parametrize("rates", [(1.0, None), (0.5, 4.0), ("video", None)])
def test_an_audio_file_of_any_length_is_used_as_the_track_of_the_video(video, tmp_path, caplog, seconds, rates):
    waveform = noise(seconds, 16000)[0]
    write_audio(tmp_path / "audio.wav", waveform, 16000)
    frames, audio = read(video, tmp_path / "audio.wav", frames_per_second=rates[0], masks_per_second=rates[1])
    assert len(frames) == {1.0: 4, 0.5: 2, "video": 40}[rates[0]]
    if seconds < 4:
        assert audio.length == 4 * 16000
        assert not audio.cut(round(seconds * 16000), audio.length).any()
        note = "its audio ends 3.00 s before the video; silence is filled in"
    else:
        assert 4 * 16000 <= audio.length <= 5 * 16000
        note = f"its audio continues for {seconds - 4:.2f} s after the video; this part is not used"
    length = min(audio.length, len(waveform))
    np.testing.assert_allclose(audio.cut(0, length), waveform[:length], atol=1e-4)
    assert caplog.messages == [f"{tmp_path / 'audio.wav'}: {note}"]


def test_an_array_of_another_length_than_the_video_is_refused(video, tmp_path):
    for seconds in (1.0, 7.5):
        with pytest.raises(ValueError, match="frames last .* s or longer, but the audio lasts .* Cut the longer one"):
            read(video, noise(seconds, 16000), sampling_rate=16000)
    write_audio(tmp_path / "audio.wav", noise(7.5, 16000), 16000)
    with pytest.raises(ValueError, match=r"4 frames at 1 per second last 4\.000 s, but the audio lasts 7\.500 s"):
        read(FRAMES, tmp_path / "audio.wav")


def test_damage_of_an_audio_file_is_noted(video, tmp_path, caplog):
    path = overwrite(write_odd_audio(tmp_path / "audio.mp3", Track("libmp3lame", 16000)), 0.4, 0.6)
    read(video, path)
    assert any("damaged or missing packets of data left out" in message for message in caplog.messages)


def timestamps_of(*arguments, **settings) -> list[float]:
    return [timestamp for timestamp, _ in read(*arguments, **settings)[0]]


def test_frames_have_the_timestamps_of_avsbench():
    assert timestamps_of(FRAMES, SOUND, sampling_rate=16000) == [0.9375, 1.9375, 2.9375, 3.9375]
    half = timestamps_of(FRAMES, SOUND[:, :32000], sampling_rate=16000, frames_per_second=2)
    assert half == [0.46875, 0.96875, 1.46875, 1.96875]
    assert timestamps_of(FRAMES, SOUND, sampling_rate=16000, timestamps=[0, 1, 2, 3.5]) == [0, 1, 2, 3.5]


@pytest.mark.parametrize("samples", [64000 - 19900, 64000 + 19900])
def test_a_difference_of_one_frame_and_a_little_is_normal(samples):
    read(FRAMES, np.zeros(samples), sampling_rate=16000)


@pytest.mark.parametrize("samples", [64000 - 20100, 64000 + 20100])
def test_frames_and_audio_of_different_length_are_refused(samples):
    with pytest.raises(
        ValueError, match=rf"4 frames at 1 per second last 4\.000 s.*{samples / 16000:.3f} s.*timestamps="
    ):
        read(FRAMES, np.zeros(samples), sampling_rate=16000)


def test_with_timestamps_the_audio_must_only_reach_the_last_frame():
    minute = np.zeros(60 * 16000)
    assert timestamps_of(FRAMES, minute, sampling_rate=16000, timestamps=[10, 20, 30, 59])[-1] == 59
    with pytest.raises(ValueError, match=r"last frame is at 61\.000 s.*ends at 60\.000 s"):
        read(FRAMES, minute, sampling_rate=16000, timestamps=[10, 20, 30, 61])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no audio track.*audio=.*sampling_rate="),
        ({"audio": SOUND}, "sampling_rate"),
        ({"audio": SOUND.T, "sampling_rate": 16000}, "(?i)transpose"),
        ({"audio": SOUND, "sampling_rate": 16000, "timestamps": [1.0]}, "1 timestamps for 4 frames"),
    ],
)
def test_missing_or_wrong_audio_is_refused_with_a_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        read(FRAMES, **arguments)


def test_a_video_takes_no_timestamps(video):
    with pytest.raises(ValueError, match="Leave them out"):
        read(video, timestamps=[0.5])


def test_a_video_without_audio_is_named_with_the_remedy(silent_video):
    with pytest.raises(MediaError, match=r"silent\.mp4.*audio="):
        read(silent_video)
    assert len(read(silent_video, SOUND, sampling_rate=16000)[0]) == 4


def test_frames_without_a_mask_are_ignored():
    mask = np.arange(12).reshape(3, 4)
    filled = fill_maps([None, mask, Image.fromarray(mask.astype(np.uint8))], (3, 3, 4))
    assert (filled[0] == 255).all()
    np.testing.assert_array_equal(filled[1], mask)
    np.testing.assert_array_equal(filled[2], mask)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([np.zeros((3, 4))], "1 segmentation maps for 2 frames"),
        ([None, np.zeros((4, 3))], r"map 1 .*\(4, 3\).*\(3, 4\)"),
    ],
)
def test_masks_that_do_not_fit_their_frames_are_refused(maps, message):
    with pytest.raises(ValueError, match=message):
        fill_maps(maps, (2, 3, 4))


RATE = 44_100
SIZE = {"height": 32, "width": 48}


def numbered_frames(number: int) -> np.ndarray:
    """Frames whose gray value is their number."""
    return np.broadcast_to(np.arange(number, dtype=np.uint8)[:, None, None, None] * 2, (number, 48, 64, 3))


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.1, (channels, round(seconds * rate))).astype(np.float32)


@pytest.fixture(scope="module")
def processor() -> PCMANetProcessor:
    return PCMANetProcessor(PCMANetImageProcessor(size=SIZE), PCMANetFeatureExtractor())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "short.mp4", numbered_frames(50), 10, noise(5), RATE)
    write_video(folder / "long.mp4", numbered_frames(120), 10, noise(12, channels=2), RATE)
    write_video(folder / "sound_ends.mp4", numbered_frames(120), 10, noise(3), RATE)
    write_video(folder / "silent.mp4", numbered_frames(40), 10)
    write_audio(folder / "sound.wav", noise(4, 16_000), 16_000)
    return folder


def assert_streams_as_called(processor: PCMANetProcessor, video, audio=None, *, stream_video=None, **settings) -> None:
    frames = list(processor.stream(video if stream_video is None else stream_video, audio, **settings))
    batch = processor(video, audio, **settings, return_metadata=True, return_tensors="pt")
    assert [frame["timestamp"] for frame in frames] == pytest.approx(batch["timestamps"][0])
    assert torch.equal(torch.stack([frame["pixel_values"] for frame in frames]), batch["pixel_values"][0])
    heard = torch.stack([frame["input_features"] for frame in frames])
    torch.testing.assert_close(heard, batch["input_features"][0], rtol=0, atol=1e-6)
    assert {tuple(frame["original_size"]) for frame in frames} == set(batch["original_sizes"])
    assert [frame["mask_timestamps"] for frame in frames] == [(frame["timestamp"],) for frame in frames]


@pytest.mark.parametrize("name", ["short.mp4", "long.mp4", "sound_ends.mp4"])
@pytest.mark.parametrize(
    "settings", [{}, {"frames_per_second": 3}, {"audio_alignment": "center"}, {"audio_alignment": "consecutive"}]
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


def test_separate_audio(processor, folder):
    assert_streams_as_called(processor, folder / "silent.mp4", noise(4), sampling_rate=RATE)
    assert_streams_as_called(processor, folder / "silent.mp4", folder / "sound.wav")
    assert_streams_as_called(processor, folder / "long.mp4", noise(12.3, 8000), sampling_rate=8000)


def test_frames_in_memory(processor):
    assert_streams_as_called(processor, numbered_frames(4), noise(4), sampling_rate=RATE)
    assert_streams_as_called(
        processor, numbered_frames(4), noise(60), sampling_rate=RATE, timestamps=[3.0, 10.5, 20, 59.9]
    )
    assert_streams_as_called(processor, numbered_frames(30), noise(15), sampling_rate=RATE, frames_per_second=2)


@pytest.mark.parametrize("name", ["short.mp4", "long.mp4", "sound_ends.mp4"])
@pytest.mark.parametrize("rates", [(1.0, 4.0), (4, 1, 0.5), (1, "video"), (2,)])
def test_several_rates_in_one_pass_give_the_streams_of_each_rate(processor, folder, name, rates):
    found = list(processor.stream_rates(folder / name, frames_per_second=rates))
    assert [frame["timestamp"] for frame in found] == sorted(frame["timestamp"] for frame in found)
    for index, rate in enumerate(rates):
        assert_same_frames([frame for frame in found if frame["rate"] == index], processor, folder / name, rate)


def assert_same_frames(found: list[dict], processor: PCMANetProcessor, video: Path, rate, audio=None) -> None:
    expected = list(processor.stream(video, audio, frames_per_second=rate))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["input_features"], other["input_features"])
        assert [one[name] for name in ("timestamp", "original_size", "mask_timestamps")] == [
            other[name] for name in ("timestamp", "original_size", "mask_timestamps")
        ]


@pytest.mark.parametrize("seconds", [4, 1.5, 30])
def test_several_rates_with_separate_audio(processor, folder, tmp_path, seconds):
    video, audio = folder / "silent.mp4", tmp_path / "sound.wav"
    write_audio(audio, noise(seconds, 16_000), 16_000)
    found = list(processor.stream_rates(video, audio, frames_per_second=(1, 5)))
    for index, rate in enumerate((1, 5)):
        assert_same_frames([frame for frame in found if frame["rate"] == index], processor, video, rate, audio)
    with pytest.raises(ValueError, match=r"silent\.mp4.*audio lasts 1\.000 s"):
        list(processor.stream_rates(video, noise(1), sampling_rate=RATE, frames_per_second=(1, 5)))


def test_every_frame_of_a_file(processor, folder):
    frames = list(processor.stream(folder / "short.mp4", frames_per_second="video"))
    assert [frame["timestamp"] for frame in frames] == pytest.approx(np.arange(50) / 10)
    media = read_media(folder / "short.mp4", frames_per_second=10)
    expected = processor.image_processor(media.frames[20], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(frames[20]["pixel_values"], expected)


@pytest.mark.parametrize(("rate", "number"), [("video", 120), (4, 48), (0.5, 6)])
def test_mask_timestamps(processor, folder, rate, number):
    frames = list(processor.stream(folder / "long.mp4", masks_per_second=rate))
    timestamps = [timestamp for frame in frames for timestamp in frame["mask_timestamps"]]
    expected = (
        np.arange(120) / 10 if rate == "video" else read_media(folder / "long.mp4", frames_per_second=rate).timestamps
    )
    assert timestamps == pytest.approx(expected)
    assert len(timestamps) == number
    for before, after in zip([{"timestamp": -1.0}, *frames[:-2]], frames[:-1], strict=True):
        assert all(before["timestamp"] < timestamp <= after["timestamp"] for timestamp in after["mask_timestamps"])


def test_mask_timestamps_for_frames_in_memory(processor):
    arguments = (numbered_frames(4), noise(4))
    frames = list(processor.stream(*arguments, sampling_rate=RATE, masks_per_second=2))
    timestamps = [timestamp for frame in frames for timestamp in frame["mask_timestamps"]]
    assert timestamps == pytest.approx((np.arange(8) + 15 / 16) / 2)
    frames = list(processor.stream(*arguments, sampling_rate=RATE, masks_per_second="video"))
    assert [frame["mask_timestamps"] for frame in frames] == [(frame["timestamp"],) for frame in frames]


@pytest.mark.parametrize(
    ("video", "arguments", "message"),
    [
        ("silent.mp4", {}, r"silent\.mp4 has no audio track.*audio="),
        ("silent.mp4", {"audio": noise(9), "sampling_rate": RATE}, r"silent\.mp4.*40? frames|4 frames.*audio lasts"),
        ("silent.mp4", {"audio": noise(1), "sampling_rate": RATE}, r"silent\.mp4.*audio lasts 1\.000 s"),
        ("silent.mp4", {"audio": noise(4)}, "sampling_rate is missing"),
        ("short.mp4", {"timestamps": [1.0]}, "Leave them out"),
        ("short.mp4", {"frames_per_second": 0}, "frames_per_second is 0"),
        ("short.mp4", {"frames_per_second": "all"}, "frames_per_second is 'all'.*\"video\""),
        ("short.mp4", {"masks_per_second": -1}, "masks_per_second is -1"),
        ("short.mp4", {"frames_per_second": True}, "frames_per_second is True: expected a number"),
        ("short.mp4", {"audio_alignment": "centered"}, "audio_alignment.*'center'.*'centered'"),
        ("short.mp4", {"frames_per_second": 2, "audio_alignment": "consecutive"}, "frames_per_second is 2.*end"),
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
    with pytest.raises(ValueError, match="must be ascending"):
        list(processor.stream(numbered_frames(2), noise(4), sampling_rate=RATE, timestamps=[2.0, 1.0]))
    with pytest.raises(ValueError, match='"video" is for video files'):
        list(processor.stream(numbered_frames(2), noise(2), sampling_rate=RATE, frames_per_second="video"))
    with pytest.raises(ValueError, match="no audio track"):
        list(processor.stream(numbered_frames(2)))


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


def test_windows_are_for_feature_extractors_that_do_not_place_patches():
    image_processor = PCMANetImageProcessor()
    with pytest.raises(
        ValueError, match=r"Got audio_windows \[\[1.0, 1.0\]\] for PCMANetFeatureExtractor.*Leave audio_windows"
    ):
        PCMANetProcessor(image_processor, PCMANetFeatureExtractor(), [[1.0, 1.0]])
    processor = PCMANetProcessor(image_processor, Wav2Vec2FeatureExtractor())
    assert processor.audio_windows == [[2.0, 2.0]] and processor.audio_reach == 2.0
    with pytest.raises(ValueError, match='"consecutive" is for the published log-mel patches.*use "center" or "end"'):
        processor(FRAMES, SOUND, sampling_rate=16000, audio_alignment="consecutive")


@pytest.mark.parametrize(
    "windows",
    [[], [1.0, 2.0], [[1.0]], [[1.0, 2.0, 3.0]], [[-1.0, 2.0]], [[0.0, 0.0]], [[float("inf"), 1.0]], "ab", 5],
)
def test_malformed_windows_are_refused(windows):
    with pytest.raises(
        ValueError, match=r"Expected audio_windows as pairs of seconds before and after the frame, such as"
    ):
        PCMANetProcessor(PCMANetImageProcessor(), Wav2Vec2FeatureExtractor(), windows)


@pytest.mark.parametrize(
    ("audio_alignment", "bounds"),
    [(None, ((0.75, 1.25), (1.0, 1.5))), ("center", ((0.75, 1.25), (0.75, 1.25))), ("end", ((0.5, 1.0), (0.5, 1.0)))],
)
def test_windows_are_placed_as_configured_or_aligned(audio_alignment, bounds):
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    processor = PCMANetProcessor(PCMANetImageProcessor(size=SIZE), extractor, [[0.25, 0.25], [0.0, 0.5]])
    mono = SOUND.mean(axis=0).astype(np.float32)
    features = processor(
        FRAMES,
        SOUND,
        sampling_rate=16000,
        timestamps=[1.0, 1.5, 2.0, 3.0],
        audio_alignment=audio_alignment,
        return_tensors="pt",
    )["input_features"]
    assert features.shape == (1, 4, 2, 8000)
    for given, (start, stop) in zip(features[0, 0], bounds, strict=True):
        np.testing.assert_allclose(given, mono[int(16000 * start) : int(16000 * stop)], atol=1e-6)


def live_chunks(seconds: int, camera_rate: int = 20):
    """A camera, and a microphone that gives a tenth of a second at a time."""
    sound = noise(seconds, 16_000)[0]
    for tenth in range(10 * seconds):
        times = [(tenth * camera_rate / 10 + frame) / camera_rate for frame in range(camera_rate // 10)]
        yield (
            list(numbered_frames(256)[:: 256 // len(times)][: len(times)]),
            times,
            sound[1600 * tenth : 1600 * (tenth + 1)],
        )


@pytest.mark.parametrize("rate", [1, 4])
@pytest.mark.parametrize("audio_alignment", ["end", "center"])
def test_live_input_gives_the_features_of_a_file(processor, rate, audio_alignment):
    frames = list(
        processor.stream_live(
            live_chunks(6), sampling_rate=16_000, frames_per_second=rate, audio_alignment=audio_alignment
        )
    )
    times = [frame["timestamp"] for frame in frames]
    timestamps = (np.arange(6 * rate) + 15 / 16) / rate
    assert times == pytest.approx(np.floor(timestamps * 20 + 1e-9) / 20)
    expected = PCMANetFeatureExtractor()(noise(6, 16_000), 16_000, timestamps=times, audio_alignment=audio_alignment)
    np.testing.assert_allclose(
        np.stack([frame["input_features"] for frame in frames]), expected["input_features"], atol=1e-6
    )


def test_live_input_with_gaps_in_frames_or_audio():
    chunks = [([], [], np.zeros(4000)), (numbered_frames(1), [0.1], None), (None, None, np.zeros((2, 4000)))]
    clip = LiveClip(chunks, 16_000, 1.0, 16_000)
    assert [timestamp for timestamp, _, _ in clip.frames] == [0.1]
    assert not clip.audio.reaches(10_000)
    assert clip.audio.length == 8000


def test_live_input_that_cannot_be_used_is_refused(processor):
    with pytest.raises(ValueError, match='"end" or "center" for live'):
        list(processor.stream_live(live_chunks(1), sampling_rate=16_000, audio_alignment="consecutive"))
    with pytest.raises(ValueError, match="2 timestamps for 1 frames"):
        list(processor.stream_live([(numbered_frames(1), [0.0, 1.0], None)], sampling_rate=16_000))
    with pytest.raises(ValueError, match="sampling_rate is missing"):
        list(processor.stream_live(live_chunks(1), sampling_rate=None))
    with pytest.raises(ValueError, match="frames_per_second is 'video': expected a number above 0\\."):
        list(processor.stream_live(live_chunks(1), sampling_rate=16_000, frames_per_second="video"))


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ((numbered_frames(1), [0.0]), "frames, their timestamps and audio .*got 2 items"),
        (noise(1), "frames, their timestamps and audio .*got a ndarray"),
        ((numbered_frames(1), [0.0], None), "without audio"),
        ((numbered_frames(1), [0.0], [0.0, 0.1]), "numpy array.*got list"),
        ((numbered_frames(1), [0.0], []), "without audio"),
    ],
)
def test_live_chunks_that_cannot_be_used_are_refused(processor, chunk, message):
    with pytest.raises(ValueError, match=message):
        list(processor.stream_live([chunk], sampling_rate=16_000))


GENERATOR = np.random.default_rng(0)
RANDOM_FRAMES = GENERATOR.integers(0, 256, (5, 60, 80, 3), dtype=np.uint8)
RANDOM_AUDIO = GENERATOR.uniform(-0.5, 0.5, (2, 5 * 16000))
MASKS = GENERATOR.integers(0, 71, (5, 60, 80), dtype=np.uint8)


@pytest.fixture
def default_processor() -> PCMANetProcessor:
    return PCMANetProcessor(PCMANetImageProcessor(size=SIZE), PCMANetFeatureExtractor())


def write_clip(path: Path, seconds: int, sound: bool = True) -> Path:
    rate = 44100
    waveform = np.sin(2 * np.pi * 440 * np.arange(seconds * rate) / rate)[None].astype(np.float32) / 2
    frames = (np.full((48, 64, 3), 10 * second, np.uint8) for second in range(seconds) for _ in range(10))
    write_video(path, frames, 10, *((waveform, rate) if sound else ()))
    return path


@pytest.fixture(scope="module")
def audio_video(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("media") / "clip.mp4", 5)


def expected_pixels(default_processor: PCMANetProcessor, frames: np.ndarray) -> torch.Tensor:
    return default_processor.image_processor(frames, return_tensors="pt")["pixel_values"]


def expected_features(default_processor: PCMANetProcessor, *arguments, **settings) -> torch.Tensor:
    return default_processor.feature_extractor(*arguments, **settings, return_tensors="pt")["input_features"]


def logits_of(tensor: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=tensor)


def test_the_batch_is_what_its_table_says(default_processor):
    rows = [line.split("|")[1:4] for line in processing_pcmanet.__doc__.splitlines() if line.startswith("| `")]
    table = {name.strip(" `"): (shape.strip(" ()").split(", "), kind.split()[0]) for name, shape, kind in rows}
    clips = [RANDOM_FRAMES, RANDOM_FRAMES[:3]], [RANDOM_AUDIO, RANDOM_AUDIO[:, :48000]]
    batch = default_processor(*clips, sampling_rate=16000, segmentation_maps=[MASKS, MASKS[:3]], return_tensors="pt")
    assert set(table) - set(batch) == {"audio_embeds", "logits"}
    known = {"batch": 2, "frames": 5, **SIZE}
    dtypes = {"float,": torch.float32, "bool,": torch.bool, "binary:": torch.int64}
    for name, tensor in batch.items():
        shape, kind = table[name]
        stated = tensor.shape[: len(shape) - 1] if shape[-1] == "..." else tensor.shape
        assert stated == tuple(known.get(size) or int(size) for size in shape if size != "...")
        assert tensor.dtype == dtypes[kind]


def test_one_clip_of_frames(default_processor):
    batch = default_processor(
        RANDOM_FRAMES, RANDOM_AUDIO, sampling_rate=16000, segmentation_maps=MASKS, return_tensors="pt"
    )
    assert torch.equal(batch["pixel_values"][0], expected_pixels(default_processor, RANDOM_FRAMES))
    assert torch.equal(batch["input_features"][0], expected_features(default_processor, RANDOM_AUDIO, 16000))
    labels = [Image.fromarray(mask).resize((48, 32), Image.Resampling.NEAREST) for mask in MASKS]
    np.testing.assert_array_equal(batch["labels"][0], np.stack(labels))
    assert "frame_mask" not in batch
    assert batch["annotated_frames"].tolist() == [[True] * 5]


def test_clips_of_different_length_and_size_are_padded(default_processor):
    small = RANDOM_FRAMES[:3, :40, :30]
    batch = default_processor(
        [RANDOM_FRAMES, small],
        [RANDOM_AUDIO, RANDOM_AUDIO[0, :48000]],
        sampling_rate=16000,
        segmentation_maps=[[Image.fromarray(MASKS[0]), None, None, None, None], MASKS[:3, :40, :30]],
        return_tensors="pt",
    )
    alone = default_processor(
        small, RANDOM_AUDIO[0, :48000], sampling_rate=16000, segmentation_maps=MASKS[:3, :40, :30], return_tensors="pt"
    )
    for name in ("pixel_values", "input_features", "labels"):
        assert torch.equal(batch[name][1, :3], alone[name][0])
    assert not batch["pixel_values"][1, 3:].any()
    assert not batch["input_features"][1, 3:].any()
    assert (batch["labels"][1, 3:] == 255).all()
    assert (batch["labels"][0, 1:] == 255).all()
    assert (batch["labels"][0, 0] != 255).all()
    assert batch["frame_mask"].tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch["annotated_frames"].tolist() == [[True] + [False] * 4, [True] * 3 + [False] * 2]


def test_a_clip_without_masks_next_to_one_with_masks(default_processor):
    batch = default_processor(
        [RANDOM_FRAMES] * 2,
        [RANDOM_AUDIO] * 2,
        sampling_rate=16000,
        segmentation_maps=[None, MASKS],
        return_tensors="pt",
    )
    assert (batch["labels"][0] == 255).all()
    assert batch["annotated_frames"].tolist() == [[False] * 5, [True] * 5]
    assert "labels" not in default_processor(RANDOM_FRAMES, RANDOM_AUDIO, sampling_rate=16000, return_tensors="pt")


@pytest.mark.parametrize("kind", ["path", "string", "bytes", "file object"])
def test_a_video_with_its_own_audio(default_processor, audio_video, kind):
    source = {
        "path": audio_video,
        "string": str(audio_video),
        "bytes": audio_video.read_bytes(),
        "file object": io.BytesIO(audio_video.read_bytes()),
    }[kind]
    media = read_media(audio_video)
    batch = default_processor(source, return_tensors="pt")
    assert torch.equal(batch["pixel_values"][0], expected_pixels(default_processor, media.frames))
    expected = expected_features(default_processor, media.waveform, media.sampling_rate, num_frames=5)
    assert torch.equal(batch["input_features"][0], expected)


def test_videos_frames_and_separate_audio_in_one_batch(default_processor, audio_video, tmp_path):
    write_audio(tmp_path / "sound.wav", RANDOM_AUDIO, 16000)
    batch = default_processor(
        [audio_video, RANDOM_FRAMES, audio_video],
        [None, tmp_path / "sound.wav", RANDOM_AUDIO[:, :40000]],
        sampling_rate=[None, None, 8000],
        return_tensors="pt",
    )
    assert torch.equal(
        batch["input_features"][0], default_processor(audio_video, return_tensors="pt")["input_features"][0]
    )
    expected = expected_features(default_processor, RANDOM_AUDIO, 16000)
    torch.testing.assert_close(batch["input_features"][1], expected, rtol=0, atol=1e-2)
    assert torch.equal(
        batch["input_features"][2],
        expected_features(default_processor, RANDOM_AUDIO[:, :40000], 8000, num_frames=5),
    )


def test_patches_of_a_long_video_follow_its_frames(default_processor, tmp_path):
    path = write_clip(tmp_path / "long.mp4", 11)
    media = read_media(path)
    arguments = (media.waveform, media.sampling_rate)
    at_end = expected_features(default_processor, *arguments, timestamps=media.timestamps, audio_alignment="end")
    assert torch.equal(default_processor(path, return_tensors="pt")["input_features"][0], at_end)
    consecutive = expected_features(default_processor, *arguments, num_frames=11)
    assert torch.equal(
        default_processor(path, audio_alignment="consecutive", return_tensors="pt")["input_features"][0], consecutive
    )
    assert not torch.equal(at_end, consecutive)


def test_another_frame_rate_follows_its_frames(default_processor, audio_video):
    batch = default_processor(audio_video, frames_per_second=3, return_metadata=True, return_tensors="pt")
    assert batch["pixel_values"].shape[:2] == (1, 15)
    media = read_media(audio_video, frames_per_second=3)
    assert batch["timestamps"][0].tolist() == media.timestamps.tolist()
    expected = expected_features(
        default_processor,
        media.waveform,
        media.sampling_rate,
        timestamps=media.timestamps,
        audio_alignment="end",
    )
    assert torch.equal(batch["input_features"][0], expected)
    with pytest.raises(ValueError, match=r"clip 0 \(.*clip\.mp4\): .*frames_per_second is 3.*end"):
        default_processor(audio_video, frames_per_second=3, audio_alignment="consecutive")


@pytest.mark.parametrize(
    ("timestamps", "frames_per_second", "expected"),
    [
        (np.arange(10) + 15 / 16, 1, "consecutive"),
        (np.arange(11) + 15 / 16, 1, "end"),
        (np.arange(10.0), 1, "consecutive"),
        (np.arange(10) + 1.5, 1, "end"),
        (np.array([0.9, 1.9, 2.2]), 1, "consecutive"),
        (np.array([0.9, 1.9, 1.9]), 1, "end"),
        (np.array([0.4]), 2, "end"),
    ],
)
def test_audio_is_aligned_as_published_only_where_that_fits(timestamps, frames_per_second, expected):
    assert choose_audio_alignment(timestamps, None, frames_per_second) == expected
    assert choose_audio_alignment(timestamps, "center", frames_per_second) == "center"


@pytest.mark.parametrize("timestamps", [[0.5, None, 2.5, 3.5], [3.0, 2.0, float("nan"), 0.0]])
def test_unusable_timestamps_are_refused(default_processor, timestamps):
    with pytest.raises(ValueError, match="clip 0: Expected timestamps as finite seconds of at least 0, one per frame"):
        default_processor(FRAMES, SOUND, sampling_rate=22050, timestamps=timestamps)


def test_timestamps_place_frames_in_long_audio(default_processor):
    sound = np.random.default_rng(2).uniform(-1, 1, 60 * 16000)
    times = [3.0, 10.5, 20.0, 40.0, 59.9]
    batch = default_processor(
        RANDOM_FRAMES, sound, sampling_rate=16000, timestamps=times, return_metadata=True, return_tensors="pt"
    )
    expected = expected_features(default_processor, sound, 16000, timestamps=times, audio_alignment="end")
    assert torch.equal(batch["input_features"][0], expected)
    assert batch["timestamps"][0].tolist() == times


def test_metadata_is_returned_only_on_request(default_processor, audio_video):
    batch = default_processor(
        [RANDOM_FRAMES, audio_video],
        [RANDOM_AUDIO, None],
        sampling_rate=16000,
        return_metadata=True,
        return_tensors="pt",
    )
    assert batch["original_sizes"] == [(60, 80), (48, 64)]
    assert [times.tolist() for times in batch["timestamps"]] == [
        [0.9375, 1.9375, 2.9375, 3.9375, 4.9375],
        pytest.approx([0.9, 1.9, 2.9, 3.9, 4.9]),
    ]
    np.testing.assert_array_equal(batch["frames"][0], RANDOM_FRAMES)
    assert batch["frames"][1].shape == (5, 48, 64, 3)
    assert set(default_processor(RANDOM_FRAMES, RANDOM_AUDIO, sampling_rate=16000, return_tensors="pt")) == {
        "pixel_values",
        "input_features",
    }


def test_settings_of_one_call_follow_the_conventions_of_transformers(default_processor):
    # Issue 16, point 16.
    call = partial(default_processor, RANDOM_FRAMES, RANDOM_AUDIO, return_tensors="pt")
    size = {"height": 24, "width": 40}
    flat = call(sampling_rate=16000, size=size, do_normalize=False)
    nested = call(
        images_kwargs={"size": size, "do_normalize": False}, audio_kwargs={"sampling_rate": 16000}, device="cpu"
    )
    expected = PCMANetImageProcessor(size=size, do_normalize=False)(RANDOM_FRAMES, return_tensors="pt")["pixel_values"]
    for batch in (flat, nested):
        assert torch.equal(batch["pixel_values"][0], expected)
        assert torch.equal(batch["input_features"], call(sampling_rate=16000)["input_features"])
    assert call(sampling_rate=16000, do_resize=False)["pixel_values"].shape[-2:] == RANDOM_FRAMES.shape[1:3]
    assert call(sampling_rate=16000, device="meta")["input_features"].device.type == "meta"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sized": 3}, "unknown keyword `sized`. Did you mean `size`?"),
        ({"images_kwargs": {"do_resiz": False}}, "images_kwargs got .* `do_resiz`. Did you mean `do_resize`?"),
        ({"audio_kwargs": {"padding": True}}, "audio_kwargs got .* `padding`. Accepted keywords are sampling_rate"),
        ({"audio_kwargs": {"sampling_rate": 16000}}, "sampling_rate twice"),
        ({"device": "cpu"}, 'needs return_tensors="pt", got None'),
        ({"size": 32, "images_kwargs": {"size": 32}}, "size was passed two times"),
    ],
)
def test_wrong_settings_of_a_call_are_refused(default_processor, settings, message):
    with pytest.raises(ValueError, match=message):
        default_processor(RANDOM_FRAMES, RANDOM_AUDIO, sampling_rate=16000, **settings)


@pytest.mark.parametrize("kind", ["batches", "rows", "rows of datasets", "columns"])
def test_clips_are_padded_later(default_processor, kind):
    # Issue 16, point 16: a map of `datasets`, or a collate function, processes clips one by one.
    clips = {"videos": [RANDOM_FRAMES, RANDOM_FRAMES[:3]], "audio": [RANDOM_AUDIO, RANDOM_AUDIO[:, :48000]]}
    settings = {"sampling_rate": 16000, "size": {"height": 8, "width": 12}}
    expected = default_processor(
        **clips, **settings, segmentation_maps=[MASKS, [None, *MASKS[1:3]]], return_tensors="pt"
    )
    one_by_one = [
        default_processor(video, audio, segmentation_maps=masks, **settings)
        for video, audio, masks in zip(*clips.values(), [MASKS, [None, *MASKS[1:3]]], strict=True)
    ]
    rows = [{name: array[0] for name, array in batch.items()} | {"id": "a"} for batch in one_by_one]
    features = {
        "batches": one_by_one,
        "rows": rows,
        "rows of datasets": list(Dataset.from_list(rows)),
        "columns": {name: [row[name] for row in rows] for name in rows[0]},
    }[kind]
    padded = default_processor.pad(features, return_tensors="pt")
    assert set(padded) == set(expected)
    for name, tensor in padded.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    again = default_processor.pad([padded], return_tensors="pt")
    assert all(torch.equal(again[name], padded[name]) for name in padded)


@pytest.mark.parametrize("mask", [[1, 0, 1], torch.tensor([1, 0, 1]), torch.tensor([True, False, True])])
def test_padding_of_any_type_is_removed_before_clips_are_padded_again(default_processor, mask):
    values = torch.arange(3.0)[:, None, None, None].expand(3, 3, 2, 2)
    padded = default_processor.pad([{"pixel_values": values, "frame_mask": mask}], return_tensors="pt")
    assert padded["pixel_values"][0, :, 0, 0, 0].tolist() == [0, 2]


def test_missing_values_of_datasets_are_missing(default_processor):
    batch = default_processor(RANDOM_FRAMES, RANDOM_AUDIO, sampling_rate=16000, size={"height": 8, "width": 12})
    row = {name: array[0] for name, array in batch.items()}
    labeled = {**row, "labels": np.ones((len(RANDOM_FRAMES), 8, 12), np.int64)}
    labeled["annotated_frames"] = np.ones(len(RANDOM_FRAMES), bool)
    rows = [labeled, {**row, "labels": None, "annotated_frames": None}]
    padded = default_processor.pad(rows, return_tensors="pt")
    assert padded["annotated_frames"].all(dim=1).tolist() == [True, False]
    assert padded["labels"][0].unique().tolist() == [1] and padded["labels"][1].unique().tolist() == [255]


def test_clips_that_cannot_be_padded_are_refused(default_processor):
    batch = default_processor(RANDOM_FRAMES, RANDOM_AUDIO, sampling_rate=16000)
    with pytest.raises(ValueError, match="Clip 1 lacks \\['input_features'\\]"):
        default_processor.pad([batch, {"pixel_values": batch["pixel_values"]}])
    with pytest.raises(ValueError, match="Expected clips with pixel_values"):
        default_processor.pad([{"id": "a"}])
    for nothing in ([], {}):
        with pytest.raises(ValueError, match="Got no clips to pad"):
            default_processor.pad(nothing)


def test_an_error_names_a_file_and_is_shown_once_for_frames(default_processor, silent_video):
    with pytest.raises(ValueError, match="^Frames have no audio track") as raised:
        next(default_processor.stream(FRAMES))
    assert raised.value.__cause__ is None
    with pytest.raises(ValueError, match=r"silent\.mp4: timestamps apply to clips given as frames"):
        next(default_processor.stream(silent_video, SOUND, sampling_rate=16000, timestamps=[1.0]))


@pytest.mark.parametrize("return_tensors", ["np", None])
def test_numpy_batches(default_processor, return_tensors):
    batch = default_processor(RANDOM_FRAMES, RANDOM_AUDIO, sampling_rate=16000, return_tensors=return_tensors)
    assert {type(array) for array in batch.values()} == {np.ndarray}
    assert batch["pixel_values"].shape == (1, 5, 3, 32, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no videos.*videos="),
        ({"videos": []}, "empty list"),
        ({"videos": RANDOM_FRAMES, "frames_per_second": 0}, "frames_per_second is 0"),
        (
            {"videos": RANDOM_FRAMES, "frames_per_second": "video"},
            "frames_per_second is 'video'",
        ),
        ({"videos": RANDOM_FRAMES}, "clip 0: .*no audio track.*audio="),
        (
            {"videos": [RANDOM_FRAMES] * 2, "audio": RANDOM_AUDIO},
            "audio must be a list of 2 entries; got a ndarray",
        ),
        ({"videos": [RANDOM_FRAMES] * 2, "audio": [RANDOM_AUDIO]}, "audio must be a list of 2 entries; got 1"),
        (
            {
                "videos": [RANDOM_FRAMES] * 2,
                "audio": [RANDOM_AUDIO, RANDOM_AUDIO[:, :9]],
                "sampling_rate": 16000,
            },
            "clip 1: .*5 frames.*lasts",
        ),
        ({"videos": RANDOM_FRAMES, "audio": RANDOM_AUDIO * np.nan, "sampling_rate": 16000}, "clip 0: .*NaN"),
        (
            {
                "videos": RANDOM_FRAMES,
                "audio": RANDOM_AUDIO,
                "sampling_rate": 16000,
                "audio_alignment": "centered",
            },
            "audio_alignment.*centered",
        ),
        (
            {
                "videos": RANDOM_FRAMES,
                "audio": RANDOM_AUDIO,
                "sampling_rate": 16000,
                "segmentation_maps": MASKS[:4],
            },
            "clip 0: 4 segmentation maps for 5 frames",
        ),
        (
            {
                "videos": RANDOM_FRAMES,
                "audio": RANDOM_AUDIO,
                "sampling_rate": 16000,
                "segmentation_maps": MASKS / 2,
            },
            "(?i)clip 0: segmentation map 0: .*float64",
        ),
    ],
)
def test_bad_calls_are_refused_with_clip_and_remedy(default_processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        default_processor(**arguments)


def test_bad_files_are_named(default_processor, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        default_processor(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError, match="text.mp4"):
        default_processor(tmp_path / "text.mp4")
    silent = write_clip(tmp_path / "silent.mp4", 2, sound=False)
    with pytest.raises(MediaError, match=r"silent\.mp4.*audio="):
        default_processor(silent)


def test_sizes_that_cannot_be_stacked_are_refused(default_processor):
    default_processor.image_processor.do_resize = False
    assert default_processor(RANDOM_FRAMES, RANDOM_AUDIO, sampling_rate=16000)["pixel_values"].shape[-2:] == (60, 80)
    with pytest.raises(ValueError, match="Clips have different sizes.*do_resize"):
        default_processor([RANDOM_FRAMES, RANDOM_FRAMES[:, :40]], [RANDOM_AUDIO, RANDOM_AUDIO], sampling_rate=16000)


def test_saving_and_loading_keeps_the_batch(default_processor, tmp_path):
    default_processor.feature_extractor.short_clip = "zeros"
    default_processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["image_processor"]["size"] == SIZE
    assert saved["feature_extractor"]["short_clip"] == "zeros"
    expected = default_processor(RANDOM_FRAMES, RANDOM_AUDIO[:, :61680], sampling_rate=16000, return_tensors="pt")
    for factory in (PCMANetProcessor, AutoProcessor):
        loaded = factory.from_pretrained(tmp_path)
        assert type(loaded) is PCMANetProcessor
        batch = loaded(RANDOM_FRAMES, RANDOM_AUDIO[:, :61680], sampling_rate=16000, return_tensors="pt")
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert not batch["input_features"][0, 4].any()


def test_names_of_the_model_s_inputs(default_processor):
    assert default_processor.model_input_names == ["pixel_values", "input_features", "frame_mask"]


def test_tensors_are_made_on_the_cpu_whatever_the_default_device_is(default_processor):
    def process() -> tuple[dict, dict, list[torch.Tensor]]:
        _resampling_kernel.cache_clear()
        clips = [FRAMES, FRAMES[:2]]
        masks = [np.ones((4, 34, 46), np.uint8), None]
        waveforms = [SOUND, SOUND[:, :32000]]
        one_by_one = [
            default_processor(frames, audio, sampling_rate=22050, segmentation_maps=maps, return_tensors="pt")
            for frames, audio, maps in zip(clips, waveforms, masks, strict=True)
        ]
        rows = [{name: tensor[0].numpy() for name, tensor in batch.items()} for batch in one_by_one]
        logits = torch.full((1, 2, 1, 8, 8), 1.0, device="cpu")
        maps = default_processor.post_process_semantic_segmentation(logits_of(logits), frame_mask=[[True, False]])
        together = default_processor(
            clips, waveforms, sampling_rate=[22050] * 2, audio_alignment="center", return_tensors="pt"
        )
        return default_processor.pad(rows, return_tensors="pt"), together, maps

    *expected, expected_maps = process()
    try:
        with torch.device("meta"):  # as `torch.set_default_device`; a tensor there has no values
            *batches, maps = process()
    finally:
        _resampling_kernel.cache_clear()
    assert all("frame_mask" in batch for batch in batches)
    assert torch.equal(maps[0], expected_maps[0])
    for batch, same in zip(batches, expected, strict=True):
        assert set(batch) == set(same)
        assert all(torch.equal(batch[name], same[name]) for name in same)


def test_binary_masks_are_decided_after_resizing(default_processor):
    logits = torch.randn(2, 3, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    maps = default_processor.post_process_semantic_segmentation(
        logits_of(logits), target_sizes=[(20, 30), (5, 7)], threshold=0.3
    )
    for clip, size, ours in zip(logits, [(20, 30), (5, 7)], maps, strict=True):
        resized = functional.interpolate(clip, size=size, mode="bilinear", align_corners=False)
        assert ours.dtype == torch.int64
        assert torch.equal(ours, (resized[:, 0].sigmoid() > 0.3).long())
        assert ours.shape == (3, *size)


def test_a_probability_at_the_threshold_is_silent(default_processor):
    maps = default_processor.post_process_semantic_segmentation(
        logits_of(torch.tensor([-1e-4, 0.0, 1e-4]).view(1, 1, 1, 1, 3))
    )
    assert maps[0].tolist() == [[[0, 0, 1]]]


def test_semantic_maps_take_the_first_of_the_highest(default_processor):
    logits = torch.randn(1, 2, 71, 8, 8, generator=torch.Generator().manual_seed(1))
    logits[0, 0, [5, 9], 0, 0] = 50.0
    maps = default_processor.post_process_semantic_segmentation(logits_of(logits), target_sizes=(16, 8))
    resized = functional.interpolate(logits[0], size=(16, 8), mode="bilinear", align_corners=False)
    assert torch.equal(maps[0], resized.argmax(dim=1))
    assert default_processor.post_process_semantic_segmentation(logits_of(logits))[0][0, 0, 0] == 5


def test_padded_frames_are_cut(default_processor):
    logits = torch.randn(2, 4, 1, 6, 6).bfloat16()
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    maps = default_processor.post_process_semantic_segmentation(logits_of(logits), frame_mask=mask)
    assert [len(ours) for ours in maps] == [4, 2]
    assert torch.equal(maps[1], (logits[1, :2, 0] > 0).long())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": "0.5"}, "threshold is '0.5'"),
        ({"target_sizes": [(8, 8)]}, "for 2 clips"),
        ({"target_sizes": [(8, 8), (0, 8)]}, "target_sizes"),
        ({"target_sizes": (8, 8, 8)}, "target_sizes"),
        ({"frame_mask": torch.ones(2, 3)}, r"\(2, 3\): expected \(2, 4\)"),
        ({"frame_mask": torch.zeros(2, 4)}, "real frame in each clip"),
    ],
)
def test_post_processing_refuses_what_does_not_fit(default_processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        default_processor.post_process_semantic_segmentation(logits_of(torch.zeros(2, 4, 1, 6, 6)), **arguments)


def test_post_processing_takes_the_arrays_of_other_runtimes(default_processor):
    logits = torch.randn(2, 3, 5, 6, 6)
    maps = default_processor.post_process_semantic_segmentation(logits_of(logits.numpy()), target_sizes=(9, 7))
    expected = default_processor.post_process_semantic_segmentation(logits_of(logits), target_sizes=(9, 7))
    assert torch.equal(torch.stack(maps), torch.stack(expected))
    with pytest.raises(ValueError, match=r"logits \(batch, frames, num_labels, height, width\), got \(3, 5, 6, 6\)"):
        default_processor.post_process_semantic_segmentation(logits_of(logits[0]))
    logits[0, 1, 2, 3, 4] = float("nan")  # not a silent frame
    with pytest.raises(ValueError, match=r"logits are not numbers \(NaN\).*use bfloat16 or float32"):
        default_processor.post_process_semantic_segmentation(logits_of(logits))


def test_shared_audio_is_read_at_each_pace() -> None:
    chunks = [np.full((1, 2), float(number)) for number in range(3)]
    pieces = [(chunks[0], 8), (None, 8), (chunks[1], 8), (None, 8), (chunks[2], 8)]
    first, second = share_audio(iter(pieces), 2)
    assert [samples for samples, _ in first] == [chunks[0], None, chunks[1], None, chunks[2]]
    # What was unknown to the first one is known when the second one gets there.
    assert [samples for samples, _ in second] == chunks


def test_shared_audio_that_is_not_known_yet_is_requested_again() -> None:
    pieces = iter([(None, 8), (np.zeros((1, 2)), 8)])
    first, second = share_audio(pieces, 2)
    assert next(first)[0] is None
    assert next(second)[0] is not None
    assert next(first)[0] is not None
    assert list(first) == list(second) == []
