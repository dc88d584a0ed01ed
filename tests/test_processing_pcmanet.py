import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoProcessor

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor, processing_pcmanet
from modeling_pcmanet.clip_pcmanet import choose_patching
from modeling_pcmanet.media_pcmanet import MediaError, read_media, write_audio, write_video


SIZE = {"height": 32, "width": 48}
GENERATOR = np.random.default_rng(0)
FRAMES = GENERATOR.integers(0, 256, (5, 60, 80, 3), dtype=np.uint8)
SOUND = GENERATOR.uniform(-0.5, 0.5, (2, 5 * 16000))
MASKS = GENERATOR.integers(0, 71, (5, 60, 80), dtype=np.uint8)


@pytest.fixture
def processor() -> PCMANetProcessor:
    return PCMANetProcessor(PCMANetImageProcessor(size=SIZE), PCMANetFeatureExtractor())


def write_clip(path: Path, seconds: int, sound: bool = True) -> Path:
    rate = 44100
    waveform = np.sin(2 * np.pi * 440 * np.arange(seconds * rate) / rate)[None].astype(np.float32) / 2
    frames = (np.full((48, 64, 3), 10 * second, np.uint8) for second in range(seconds) for _ in range(10))
    write_video(path, frames, 10, *((waveform, rate) if sound else ()))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("media") / "clip.mp4", 5)


def expected_pixels(processor: PCMANetProcessor, frames: np.ndarray) -> torch.Tensor:
    return processor.image_processor(frames, return_tensors="pt")["pixel_values"]


def expected_features(processor: PCMANetProcessor, *arguments, **settings) -> torch.Tensor:
    return processor.feature_extractor(*arguments, **settings, return_tensors="pt")["input_features"]


def logits_of(tensor: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=tensor)


def test_the_batch_is_what_its_table_says(processor):
    rows = [line.split("|")[1:4] for line in processing_pcmanet.__doc__.splitlines() if line.startswith("| `")]
    table = {name.strip(" `"): (shape.strip(" ()").split(", "), kind.split()[0]) for name, shape, kind in rows}
    batch = processor([FRAMES], [SOUND], sampling_rate=16000, segmentation_maps=[MASKS])
    assert set(table) - set(batch) == {"audio_embeds", "logits"}
    known = {"batch": 1, "frames": 5, **SIZE}
    dtypes = {"float,": torch.float32, "bool,": torch.bool, "binary:": torch.int64}
    for name, tensor in batch.items():
        shape, kind = table[name]
        assert tensor.shape == tuple(known.get(size) or int(size) for size in shape)
        assert tensor.dtype == dtypes[kind]


def test_one_clip_of_frames(processor):
    batch = processor(FRAMES, SOUND, sampling_rate=16000, segmentation_maps=MASKS)
    assert torch.equal(batch["pixel_values"][0], expected_pixels(processor, FRAMES))
    assert torch.equal(batch["input_features"][0], expected_features(processor, SOUND, 16000))
    labels = [Image.fromarray(mask).resize((48, 32), Image.Resampling.NEAREST) for mask in MASKS]
    np.testing.assert_array_equal(batch["labels"][0], np.stack(labels))
    assert batch["frame_mask"].tolist() == [[True] * 5]
    assert batch["label_mask"].tolist() == [[True] * 5]


def test_clips_of_different_length_and_size_are_padded(processor):
    small = FRAMES[:3, :40, :30]
    batch = processor(
        [FRAMES, small],
        [SOUND, SOUND[0, :48000]],
        sampling_rate=16000,
        segmentation_maps=[[Image.fromarray(MASKS[0]), None, None, None, None], MASKS[:3, :40, :30]],
    )
    alone = processor(small, SOUND[0, :48000], sampling_rate=16000, segmentation_maps=MASKS[:3, :40, :30])
    for name in ("pixel_values", "input_features", "labels"):
        assert torch.equal(batch[name][1, :3], alone[name][0])
    assert not batch["pixel_values"][1, 3:].any()
    assert not batch["input_features"][1, 3:].any()
    assert (batch["labels"][1, 3:] == 255).all()
    assert (batch["labels"][0, 1:] == 255).all()
    assert (batch["labels"][0, 0] != 255).all()
    assert batch["frame_mask"].tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch["label_mask"].tolist() == [[True] + [False] * 4, [True] * 3 + [False] * 2]


def test_a_clip_without_masks_beside_one_with_masks(processor):
    batch = processor([FRAMES] * 2, [SOUND] * 2, sampling_rate=16000, segmentation_maps=[None, MASKS])
    assert (batch["labels"][0] == 255).all()
    assert batch["label_mask"].tolist() == [[False] * 5, [True] * 5]
    assert "labels" not in processor(FRAMES, SOUND, sampling_rate=16000)


@pytest.mark.parametrize("kind", ["path", "string", "bytes", "file object"])
def test_a_video_with_its_own_sound(processor, video, kind):
    source = {
        "path": video,
        "string": str(video),
        "bytes": video.read_bytes(),
        "file object": io.BytesIO(video.read_bytes()),
    }[kind]
    media = read_media(video)
    batch = processor(source)
    assert torch.equal(batch["pixel_values"][0], expected_pixels(processor, media.frames))
    expected = expected_features(processor, media.waveform, media.sampling_rate, num_frames=5)
    assert torch.equal(batch["input_features"][0], expected)


def test_videos_frames_and_separate_sound_mix_in_one_batch(processor, video, tmp_path):
    write_audio(tmp_path / "sound.wav", SOUND, 16000)
    batch = processor(
        [video, FRAMES, video],
        [None, tmp_path / "sound.wav", SOUND[:, :40000]],
        sampling_rate=[None, None, 8000],
    )
    assert torch.equal(batch["input_features"][0], processor(video)["input_features"][0])
    expected = expected_features(processor, SOUND, 16000)
    torch.testing.assert_close(batch["input_features"][1], expected, rtol=0, atol=1e-2)
    assert torch.equal(batch["input_features"][2], expected_features(processor, SOUND[:, :40000], 8000, num_frames=5))


def test_a_long_video_is_heard_at_its_frames(processor, tmp_path):
    path = write_clip(tmp_path / "long.mp4", 11)
    media = read_media(path)
    arguments = (media.waveform, media.sampling_rate)
    trailing = expected_features(processor, *arguments, timestamps=media.timestamps, patching="trailing")
    assert torch.equal(processor(path)["input_features"][0], trailing)
    consecutive = expected_features(processor, *arguments, num_frames=11)
    assert torch.equal(processor(path, patching="consecutive")["input_features"][0], consecutive)
    assert not torch.equal(trailing, consecutive)


def test_another_frame_rate_follows_its_frames(processor, video):
    batch = processor(video, frames_per_second=3, return_metadata=True)
    assert batch["frame_mask"].shape == (1, 15)
    media = read_media(video, frames_per_second=3)
    assert batch["timestamps"][0].tolist() == media.timestamps.tolist()
    expected = expected_features(
        processor, media.waveform, media.sampling_rate, timestamps=media.timestamps, patching="trailing"
    )
    assert torch.equal(batch["input_features"][0], expected)
    with pytest.raises(ValueError, match=r"clip 0 \(.*clip\.mp4\): .*frames_per_second is 3.*trailing"):
        processor(video, frames_per_second=3, patching="consecutive")


@pytest.mark.parametrize(
    ("timestamps", "frames_per_second", "expected"),
    [
        (np.arange(10) + 15 / 16, 1, "consecutive"),
        (np.arange(11) + 15 / 16, 1, "trailing"),
        (np.arange(10.0), 1, "consecutive"),
        (np.arange(10) + 1.5, 1, "trailing"),
        (np.array([0.9, 1.9, 2.2]), 1, "consecutive"),
        (np.array([0.9, 1.9, 1.9]), 1, "trailing"),
        (np.array([0.4]), 2, "trailing"),
    ],
)
def test_sound_is_cut_as_published_only_where_that_fits(timestamps, frames_per_second, expected):
    assert choose_patching(timestamps, None, frames_per_second) == expected
    assert choose_patching(timestamps, "aligned", frames_per_second) == "aligned"


def test_timestamps_place_frames_in_a_long_sound(processor):
    sound = np.random.default_rng(2).uniform(-1, 1, 60 * 16000)
    times = [3.0, 10.5, 20.0, 40.0, 59.9]
    batch = processor(FRAMES, sound, sampling_rate=16000, timestamps=times, return_metadata=True)
    expected = expected_features(processor, sound, 16000, timestamps=times, patching="trailing")
    assert torch.equal(batch["input_features"][0], expected)
    assert batch["timestamps"][0].tolist() == times


def test_metadata_come_only_when_asked_for(processor, video):
    batch = processor([FRAMES, video], [SOUND, None], sampling_rate=16000, return_metadata=True)
    assert batch["original_sizes"] == [(60, 80), (48, 64)]
    assert [times.tolist() for times in batch["timestamps"]] == [
        [0.9375, 1.9375, 2.9375, 3.9375, 4.9375],
        pytest.approx([0.9, 1.9, 2.9, 3.9, 4.9]),
    ]
    np.testing.assert_array_equal(batch["frames"][0], FRAMES)
    assert batch["frames"][1].shape == (5, 48, 64, 3)
    assert set(processor(FRAMES, SOUND, sampling_rate=16000)) == {"pixel_values", "input_features", "frame_mask"}


@pytest.mark.parametrize("return_tensors", ["np", None])
def test_numpy_batches(processor, return_tensors):
    batch = processor(FRAMES, SOUND, sampling_rate=16000, return_tensors=return_tensors)
    assert {type(array) for array in batch.values()} == {np.ndarray}
    assert batch["pixel_values"].shape == (1, 5, 3, 32, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no videos.*videos="),
        ({"videos": []}, "empty list"),
        ({"videos": FRAMES, "frames_per_second": 0}, "frames_per_second is 0"),
        ({"videos": FRAMES, "frames_per_second": "video"}, "frames_per_second is 'video'"),
        ({"videos": FRAMES}, "clip 0: .*no sound track.*audio="),
        ({"videos": [FRAMES] * 2, "audio": SOUND}, "audio must be a list of 2 entries; got a ndarray"),
        ({"videos": [FRAMES] * 2, "audio": [SOUND]}, "audio must be a list of 2 entries; got 1"),
        (
            {"videos": [FRAMES] * 2, "audio": [SOUND, SOUND[:, :9]], "sampling_rate": 16000},
            "clip 1: .*5 frames.*lasts",
        ),
        ({"videos": FRAMES, "audio": SOUND * np.nan, "sampling_rate": 16000}, "clip 0: .*NaN"),
        ({"videos": FRAMES, "audio": SOUND, "sampling_rate": 16000, "patching": "centred"}, "clip 0: .*centred"),
        (
            {"videos": FRAMES, "audio": SOUND, "sampling_rate": 16000, "segmentation_maps": MASKS[:4]},
            "clip 0: 4 segmentation maps for 5 frames",
        ),
        (
            {"videos": FRAMES, "audio": SOUND, "sampling_rate": 16000, "segmentation_maps": MASKS / 2},
            "clip 0: segmentation map 0 has dtype float64",
        ),
    ],
)
def test_bad_calls_are_refused_with_clip_and_remedy(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_bad_files_are_named(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        processor(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError, match="text.mp4"):
        processor(tmp_path / "text.mp4")
    silent = write_clip(tmp_path / "silent.mp4", 2, sound=False)
    with pytest.raises(MediaError, match=r"silent\.mp4.*audio="):
        processor(silent)


def test_sizes_that_cannot_be_stacked_are_refused(processor):
    processor.image_processor.do_resize = False
    assert processor(FRAMES, SOUND, sampling_rate=16000)["pixel_values"].shape[-2:] == (60, 80)
    with pytest.raises(ValueError, match="different sizes.*do_resize"):
        processor([FRAMES, FRAMES[:, :40]], [SOUND, SOUND], sampling_rate=16000)


def test_saving_and_loading_keeps_the_batch(processor, tmp_path):
    processor.feature_extractor.short_clip = "zeros"
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["image_processor"]["size"] == SIZE
    assert saved["feature_extractor"]["short_clip"] == "zeros"
    expected = processor(FRAMES, SOUND[:, :61680], sampling_rate=16000)
    for factory in (PCMANetProcessor, AutoProcessor):
        loaded = factory.from_pretrained(tmp_path)
        assert type(loaded) is PCMANetProcessor
        batch = loaded(FRAMES, SOUND[:, :61680], sampling_rate=16000)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert not batch["input_features"][0, 4].any()


def test_names_of_the_model_s_inputs(processor):
    assert processor.model_input_names == ["pixel_values", "input_features", "frame_mask"]


def test_binary_masks_are_decided_after_resizing(processor):
    logits = torch.randn(2, 3, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    maps = processor.post_process_semantic_segmentation(
        logits_of(logits), target_sizes=[(20, 30), (5, 7)], threshold=0.3
    )
    for clip, size, ours in zip(logits, [(20, 30), (5, 7)], maps, strict=True):
        resized = functional.interpolate(clip, size=size, mode="bilinear", align_corners=False)
        assert ours.dtype == torch.int64
        assert torch.equal(ours, (resized[:, 0].sigmoid() > 0.3).long())
        assert ours.shape == (3, *size)


def test_a_probability_at_the_threshold_is_silent(processor):
    maps = processor.post_process_semantic_segmentation(
        logits_of(torch.tensor([-1e-4, 0.0, 1e-4]).view(1, 1, 1, 1, 3))
    )
    assert maps[0].tolist() == [[[0, 0, 1]]]


def test_semantic_maps_take_the_first_of_the_highest(processor):
    logits = torch.randn(1, 2, 71, 8, 8, generator=torch.Generator().manual_seed(1))
    logits[0, 0, [5, 9], 0, 0] = 50.0
    maps = processor.post_process_semantic_segmentation(logits_of(logits), target_sizes=(16, 8))
    resized = functional.interpolate(logits[0], size=(16, 8), mode="bilinear", align_corners=False)
    assert torch.equal(maps[0], resized.argmax(dim=1))
    assert processor.post_process_semantic_segmentation(logits_of(logits))[0][0, 0, 0] == 5


def test_padded_frames_are_cut(processor):
    logits = torch.randn(2, 4, 1, 6, 6).bfloat16()
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    maps = processor.post_process_semantic_segmentation(logits_of(logits), frame_mask=mask)
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
def test_post_processing_refuses_what_does_not_fit(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_semantic_segmentation(logits_of(torch.zeros(2, 4, 1, 6, 6)), **arguments)
