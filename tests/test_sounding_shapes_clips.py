"""Tests of dataset_scripts/sounding_shapes/clips.py."""

import pickle

import numpy as np
import pytest

from modeling_pcmanet.feature_extraction_pcmanet import PCMANetFeatureExtractor
from pcmanet.dataset_scripts import SPLITS
from pcmanet.dataset_scripts.sounding_shapes.clips import (
    NEGATIVE_KINDS,
    TASKS,
    SoundingShapes,
    SyntheticClip,
    mask_sounding,
)
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES
from pcmanet.dataset_scripts.sounding_shapes.sound import render_mixture


# Clip 0 of ms3's test split.
RECORDED_CLASSES = ["framed-flower", "speckled-heart", "spoked-hexagon"]
RECORDED_SOUNDING = [[1, 1, 0], [0, 0, 1], [0, 0, 1], [1, 1, 1], [1, 1, 1]]
RECORDED_BRIGHTNESS = [184.905, 185.3, 183.908, 183.094, 184.881]
RECORDED_LEVELS = [0.08934, 0.07514, 0.07667, 0.11553, 0.11748]


def small(task: str = "ms3", split: str = "train", **arguments) -> SoundingShapes:
    return SoundingShapes(task, split, **{"length": 400, "height": 48, "width": 48, **arguments})


@pytest.fixture
def without_audio(monkeypatch) -> None:
    """Leave the waveform silent, for tests of many clips that do not hear it: sounds take about half of the time."""
    monkeypatch.setattr(
        "pcmanet.dataset_scripts.sounding_shapes.clips.render_mixture",
        lambda _, __, sounding: np.zeros(len(sounding) * 16000, np.float32),
    )


def contents(clip: SyntheticClip) -> bytes:
    """Return the contents of a clip as bytes, to compare clips exactly."""
    return pickle.dumps(vars(clip))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("height", "width", "num_frames"), [(48, 48, 5), (40, 64, 3), (65, 33, 1)])
def test_a_clip_has_the_documented_shapes_and_ranges(task, height, width, num_frames):
    clip = small(task, height=height, width=width, num_frames=num_frames)[3]
    assert clip.frames.shape == (num_frames, height, width, 3)
    assert clip.masks.shape == clip.objects.shape == (num_frames, height, width)
    assert clip.frames.dtype == clip.masks.dtype == clip.objects.dtype == np.uint8
    assert clip.waveform.shape == (num_frames * 16000,)
    assert clip.waveform.dtype == np.float32
    assert np.abs(clip.waveform).max() <= 1.0
    assert clip.sampling_rate == 16000
    assert clip.sounding.shape == (num_frames, len(clip.object_classes))
    assert clip.sounding.dtype == clip.annotated_frames.dtype == bool
    assert 2 <= len(set(clip.object_classes)) == len(clip.object_classes) <= 4
    assert all(1 <= label <= 12 for label in clip.object_classes)
    np.testing.assert_array_equal(clip.timestamps, np.arange(num_frames) + 15 / 16)
    assert clip.negative is None


@pytest.mark.parametrize("task", TASKS)
def test_masks_show_exactly_the_sounding_objects(task):
    for clip in (small(task)[index] for index in range(10)):
        for frame in range(5):
            sounding = [
                label for label, sounds in zip(clip.object_classes, clip.sounding[frame], strict=True) if sounds
            ]
            expected = np.where(np.isin(clip.objects[frame], sounding), clip.objects[frame], 0)
            np.testing.assert_array_equal(clip.masks[frame], expected)
            assert set(np.unique(clip.objects[frame])) == {0, *clip.object_classes}
        np.testing.assert_array_equal(clip.binary, clip.masks != 0)
        assert clip.binary.dtype == np.uint8


def test_a_clip_depends_on_its_index_only():
    long, short = small(length=400), small(length=8)
    expected = contents(short[7])
    for index in (0, 399, 12):
        assert contents(long[index]) != expected
    assert contents(long[7]) == expected
    assert contents(pickle.loads(pickle.dumps(short))[7]) == expected
    assert contents(short.swap_audio(7)) == contents(long.swap_audio(7)) != expected
    assert contents(short[7]) == expected


def test_the_first_clip_does_not_change():
    # Recorded once; rounded, because the last bit of numpy's sine may differ between processors.
    clip = SoundingShapes("ms3", "test", length=1)[0]
    assert [CLASSES[label - 1] for label in clip.object_classes] == RECORDED_CLASSES
    np.testing.assert_array_equal(clip.sounding.astype(int), RECORDED_SOUNDING)
    np.testing.assert_allclose(clip.frames.mean(axis=(1, 2, 3)), RECORDED_BRIGHTNESS, atol=0.01)
    np.testing.assert_allclose(clip.waveform.reshape(5, -1).std(axis=1), RECORDED_LEVELS, rtol=1e-3)


def test_splits_tasks_and_seeds_share_no_random_numbers():
    clips = [small(task, split, seed=seed)[5] for task in TASKS for split in SPLITS for seed in (0, 1)]
    assert len({clip.frames.tobytes() for clip in clips}) == len(clips)
    assert len({clip.waveform.tobytes() for clip in clips}) == len(clips)


@pytest.mark.usefixtures("without_audio")
@pytest.mark.parametrize(("split", "annotated"), [("train", [1, 0, 0, 0, 0]), ("val", [1] * 5), ("test", [1] * 5)])
def test_s4_has_one_sounding_object_throughout(split, annotated):
    dataset = small("s4", split)
    for clip in (dataset[index] for index in range(20)):
        assert (clip.sounding.sum(axis=1) == 1).all()
        assert (clip.sounding == clip.sounding[0]).all()
        np.testing.assert_array_equal(clip.annotated_frames, np.array(annotated, dtype=bool))


@pytest.mark.usefixtures("without_audio")
@pytest.mark.parametrize("task", ["ms3", "avss"])
def test_sounding_objects_change_every_second(task):
    dataset = small(task, height=32, width=32)
    clips = [dataset[index] for index in range(80)]
    counts = np.concatenate([clip.sounding.sum(axis=1) for clip in clips])
    assert 0.07 < (counts == 0).mean() < 0.17
    assert (counts >= 2).mean() > 0.3
    assert counts.max() == 3
    assert all(clip.annotated_frames.all() for clip in clips)
    assert np.mean([(clip.sounding[1:] != clip.sounding[:-1]).any() for clip in clips]) > 0.9


def test_silent_seconds_are_quiet_and_sounding_ones_are_not():
    dataset = small(height=32, width=32)
    for clip in (dataset[index] for index in range(15)):
        # The reverberation of a room may last a fifth of a second.
        levels = clip.waveform.reshape(5, 16000)[:, 4000:].std(axis=1)
        sounding = clip.sounding.any(axis=1)
        assert (levels[~sounding] < 0.005).all()
        assert (levels[sounding] > 0.008).all()


@pytest.mark.parametrize("task", TASKS)
def test_swapped_audio_keeps_the_frames_and_changes_the_masks(task):
    dataset = small(task)
    for index in range(10):
        before, after = dataset[index], dataset.swap_audio(index)
        np.testing.assert_array_equal(before.frames, after.frames)
        np.testing.assert_array_equal(before.objects, after.objects)
        assert before.object_classes == after.object_classes
        assert (before.sounding != after.sounding).any(axis=1).all()
        assert (before.masks != after.masks).any(axis=(1, 2)).all()
        assert not np.array_equal(before.waveform, after.waveform)


@pytest.mark.parametrize("kind", NEGATIVE_KINDS)
def test_negative_audio_belongs_to_no_visible_object(kind):
    dataset = small()
    for index in range(5):
        clip = dataset.negative(index, kind)
        np.testing.assert_array_equal(clip.frames, dataset[index].frames)
        assert clip.negative == kind
        assert not clip.masks.any()
        assert not clip.sounding.any()
        assert clip.objects.any()
        assert (np.abs(clip.waveform).max() == 0.0) == (kind == "silence")
    with pytest.raises(ValueError, match="silence.*got 'hum'"):
        dataset.negative(0, "hum")


def test_an_absent_class_is_never_visible(monkeypatch):
    rendered, dataset = [], small()

    def record(label: int, *_) -> np.ndarray:
        rendered.append(label)
        return np.zeros(80000, dtype=np.float32)

    monkeypatch.setattr("pcmanet.dataset_scripts.sounding_shapes.sound.render_source", record)
    for index in range(20):
        rendered.clear()
        shown = dataset.negative(index, "absent_class").object_classes
        assert len(rendered) == 2
        assert not {label + 1 for label in rendered} & set(shown)


@pytest.mark.usefixtures("without_audio")
@pytest.mark.parametrize(("fraction", "lowest", "highest"), [(0.0, 0, 0), (0.3, 30, 62), (1.0, 150, 150)])
def test_negative_fraction_draws_all_kinds(fraction, lowest, highest):
    dataset = small(negative_fraction=fraction, height=32, width=32, num_frames=1)
    kinds = [dataset[index].negative for index in range(150)]
    assert lowest <= sum(kind is not None for kind in kinds) <= highest
    assert fraction == 0.0 or set(NEGATIVE_KINDS) <= set(kinds)


def test_negative_kinds_can_be_chosen():
    settings = {"negative_fraction": 1.0, "height": 32, "width": 32, "num_frames": 1}
    assert {small(**settings, negative_kinds=["noise"])[index].negative for index in range(10)} == {"noise"}
    with pytest.raises(ValueError, match="as negative_kinds, got"):
        small(**settings, negative_kinds=["hum"])


def test_a_video_contains_the_frames_and_moves():
    dataset = small(num_frames=2)
    clip, frames = dataset[4], list(dataset.render_video_frames(4, frames_per_second=16))
    assert len(frames) == 32
    # At 16 frames per second, the time of AVSBench's frames, 15/16 into a second, is a frame of the video.
    np.testing.assert_array_equal(frames[15], clip.frames[0])
    np.testing.assert_array_equal(frames[31], clip.frames[1])
    assert all((first != second).any() for first, second in zip(frames, frames[1:], strict=False))


def test_render_at_gives_masks_at_any_time():
    dataset = small()
    clip = dataset[2]
    times = [1.0 + 1e-6, 1.5, clip.timestamps[1]]
    objects = [labels for _, labels in dataset.render_at(2, times)]
    np.testing.assert_array_equal(objects[2], clip.objects[1])
    np.testing.assert_array_equal(mask_sounding(objects[2], clip.sounding[1], clip.object_classes), clip.masks[1])
    assert (objects[0] != objects[1]).any()


def test_the_size_changes_the_resolution_only():
    coarse, fine = small(height=40, width=60)[6], small(height=80, width=120)[6]
    np.testing.assert_array_equal(coarse.waveform, fine.waveform)
    assert (coarse.objects == fine.objects[:, ::2, ::2]).mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "ms4"}, "'ms4'"),
        ({"split": "eval"}, "'eval'"),
        ({"length": -1}, "-1"),
        ({"seed": -3}, "-3"),
        ({"height": 31}, "31x48"),
        ({"num_frames": 0}, "0"),
        ({"negative_fraction": 1.5}, "1.5"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.mark.parametrize("index", [-1, 400])
def test_an_index_outside_the_range_raises(index):
    with pytest.raises(IndexError, match=f"from 0 to 399, got {index}"):
        small()[index]


@pytest.mark.slow
def test_sounding_classes_are_recognizable_in_the_log_mel():
    # A linear classifier on simple statistics of each patch must find the sounding classes in mixtures of one to three.
    extractor, rng = PCMANetFeatureExtractor(), np.random.default_rng(0)
    features, targets = [], []
    for index in range(300):
        dataset = small("ms3", height=32, width=32)
        labels = rng.permutation(12)[:4]
        generator = np.random.default_rng(index)
        sounding = dataset._draw_sounding(generator, 4)
        waveform = render_mixture(generator, labels, sounding)
        mel = np.asarray(extractor(waveform, 16000)["input_features"])[:, 0]
        change = np.abs(np.diff(mel, axis=1)).mean(axis=1)
        features.append(np.concatenate([mel.mean(axis=1), mel.std(axis=1), mel.max(axis=1), change], axis=1))
        target = np.zeros((5, 12))
        target[:, labels] = sounding
        targets.append(target)
    features, targets = np.concatenate(features), np.concatenate(targets)
    features = (features - features[:1200].mean(axis=0)) / features[:1200].std(axis=0)
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    gram = features[:1200].T @ features[:1200] + 30.0 * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features[:1200].T @ targets[:1200])
    accuracy = ((features[1200:] @ weights > 0.4) == targets[1200:]).mean(axis=0)
    assert accuracy.min() > 0.93
    assert accuracy.mean() > 0.97
