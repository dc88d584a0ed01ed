import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_pcmanet.clip_pcmanet import fill_maps, is_clip, read_clip, stack_frames
from modeling_pcmanet.media_pcmanet import MediaError, write_audio, write_video


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
        (FRAMES[:0], r"\(0, 34, 46, 3\).*at least one"),
        (FRAMES[0], r"\(34, 46, 3\).*list of one"),
        (FRAMES[..., :1], r"\(4, 34, 46, 1\).*three times"),
        ([FRAMES[0], FRAMES[1, :10]], "different shapes.*one size"),
        ({"path": "clip.mp4"}, "a dict is no clip"),
        (None, "NoneType is no clip"),
    ],
)
def test_unusable_frames_are_refused_with_a_remedy(frames, message):
    with pytest.raises(ValueError, match=message):
        stack_frames(frames)


def test_a_video_brings_frames_moments_and_sound(video):
    clip = read_clip(video)
    np.testing.assert_allclose(clip.frames.mean(axis=(1, 2, 3)), [0, 20, 40, 60], atol=3)
    np.testing.assert_allclose(clip.timestamps, [0.9, 1.9, 2.9, 3.9], atol=1e-6)
    assert clip.sampling_rate == 16000
    assert clip.waveform.shape[0] == 2
    assert clip.waveform.shape[1] == pytest.approx(64000, abs=1024)  # AAC works in blocks of 1,024 samples


@pytest.mark.parametrize("kind", ["array", "path", "bytes", "file object"])
def test_separate_sound_replaces_the_video_s_own(video, tmp_path, kind):
    sound = np.sin(np.arange(4 * 8000) / 3)
    path = tmp_path / "sound.wav"
    write_audio(path, sound, 8000)
    audio = {
        "array": sound,
        "path": path,
        "bytes": path.read_bytes(),
        "file object": io.BytesIO(path.read_bytes()),
    }[kind]
    clip = read_clip(video, audio, sampling_rate=8000)
    assert clip.sampling_rate == 8000
    np.testing.assert_allclose(np.asarray(clip.waveform).reshape(-1), sound, atol=1e-4)


def test_frames_stand_where_avsbench_takes_them():
    assert read_clip(FRAMES, SOUND, 16000).timestamps.tolist() == [0.9375, 1.9375, 2.9375, 3.9375]
    half = read_clip(FRAMES, SOUND[:, :32000], 16000, frames_per_second=2)
    assert half.timestamps.tolist() == [0.46875, 0.96875, 1.46875, 1.96875]
    assert read_clip(FRAMES, SOUND, 16000, timestamps=[0, 1, 2, 3.5]).timestamps.tolist() == [0, 1, 2, 3.5]


@pytest.mark.parametrize("samples", [64000 - 19900, 64000 + 19900])
def test_a_difference_of_one_frame_and_a_little_is_normal(samples):
    read_clip(FRAMES, np.zeros(samples), 16000)


@pytest.mark.parametrize("samples", [64000 - 20100, 64000 + 20100])
def test_frames_and_sound_of_different_length_are_refused(samples):
    with pytest.raises(
        ValueError, match=rf"4 frames at 1 per second last 4\.000 s.*{samples / 16000:.3f} s.*timestamps="
    ):
        read_clip(FRAMES, np.zeros(samples), 16000)


def test_with_timestamps_the_sound_must_only_reach_the_last_frame():
    minute = np.zeros(60 * 16000)
    assert read_clip(FRAMES, minute, 16000, timestamps=[10, 20, 30, 59]).timestamps[-1] == 59
    with pytest.raises(ValueError, match=r"last frame is at 61\.000 s.*ends at 60\.000 s"):
        read_clip(FRAMES, minute, 16000, timestamps=[10, 20, 30, 61])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no sound track.*audio=.*sampling_rate="),
        ({"audio": SOUND}, "sampling_rate is missing"),
        ({"audio": SOUND.T, "sampling_rate": 16000}, "transpose"),
        ({"audio": SOUND, "sampling_rate": 16000, "timestamps": [1.0]}, "1 timestamps for 4 frames"),
    ],
)
def test_missing_or_wrong_sound_is_refused_with_a_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_clip(FRAMES, **arguments)


def test_a_video_takes_no_timestamps(video):
    with pytest.raises(ValueError, match="leave them out"):
        read_clip(video, timestamps=[0.5])


def test_a_video_without_sound_is_named_with_the_remedy(silent_video):
    with pytest.raises(MediaError, match=r"silent\.mp4.*audio="):
        read_clip(silent_video)
    assert read_clip(silent_video, SOUND, 16000).frames.shape == (4, 48, 64, 3)


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
