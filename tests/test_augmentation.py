"""Tests of dataset_scripts/augmentation.py."""

from dataclasses import replace

import numpy as np
import pytest

from pcmanet.dataset_scripts.augmentation import (
    Augmentation,
    adjust_colors,
    amplify,
    crop,
    flip,
    has_unrelated_audio,
    mix_audio,
    replace_audio,
)
from pcmanet.dataset_scripts.clips import ClipArrays


OFF = {"flips": 0.0, "crops": 0.0, "photometric": 0.0, "loudness": 0.0, "mixing": 0.0, "replacement": 0.0}


def make_clip(name="dog", seed=0, seconds=2):
    generator = np.random.default_rng(seed)
    frames = generator.integers(0, 256, (seconds, 20, 30, 3), dtype=np.uint8)
    return ClipArrays(
        name=name,
        frames=frames,
        masks=np.stack([frames[0, ..., 0] > 127, *[np.full((20, 30), 255)] * (seconds - 1)]).astype(np.uint8),
        annotated_frames=np.array([True] + [False] * (seconds - 1)),
        waveform=generator.uniform(-0.3, 0.3, (2, seconds * 100)).astype(np.float32),
        sampling_rate=100,
        timestamps=np.arange(seconds) + 0.9375,
        objects=frozenset([name]),
    )


def rms(waveform):
    return np.sqrt(np.mean(waveform.astype(np.float64) ** 2))


def test_flip_and_crop_keep_masks_on_their_pixels():
    clip = make_clip()
    for changed in (flip(clip), crop(clip, 3, 5, 10, 12), crop(flip(clip), 0, 0, 20, 1)):
        np.testing.assert_array_equal(changed.masks[0], changed.frames[0, ..., 0] > 127)
    np.testing.assert_array_equal(flip(clip).frames[0, 0, 0], clip.frames[0, 0, -1])
    np.testing.assert_array_equal(crop(clip, 3, 5, 10, 12).frames, clip.frames[:, 3:13, 5:17])


def test_adjust_colors_scales_brightness_contrast_and_saturation():
    clip = make_clip()
    np.testing.assert_array_equal(adjust_colors(clip, 1, 1, 1).frames, clip.frames)
    half = adjust_colors(clip, 0.5, 1, 1).frames.astype(int)
    assert np.abs(half - clip.frames / 2).max() <= 0.5 + 1e-4
    gray = adjust_colors(clip, 1, 1, 0).frames
    assert (np.ptp(gray, axis=-1) == 0).all()
    np.testing.assert_allclose(gray[..., 0], clip.frames @ [0.299, 0.587, 0.114], atol=0.51)
    flat = adjust_colors(clip, 1, 0, 1).frames
    assert np.ptp(flat) == 0 and abs(float(flat.mean()) - (clip.frames @ [0.299, 0.587, 0.114]).mean()) < 0.51
    assert adjust_colors(clip, 3, 1, 1).frames.max() == 255
    np.testing.assert_array_equal(adjust_colors(clip, 3, 2, 0.5).masks, clip.masks)


def test_amplify_scales_by_decibels_up_to_full_scale():
    clip = make_clip()
    np.testing.assert_allclose(amplify(clip, -6.0206).waveform, clip.waveform / 2, rtol=1e-4)
    assert abs(np.abs(amplify(clip, 40).waveform).max() - 1) < 1e-6
    silent = replace(clip, waveform=np.zeros((1, 200), np.float32))
    assert amplify(silent, 20).waveform.max() == 0


def test_mix_audio_adds_the_other_audio_at_the_given_level():
    clip, other = make_clip(), make_clip("cat", 1, seconds=1)
    added = mix_audio(clip, other, -10).waveform - clip.waveform
    assert abs(20 * np.log10(rms(added) / rms(clip.waveform)) + 10) < 0.01
    np.testing.assert_allclose(added[0], added[1], atol=1e-6)
    np.testing.assert_allclose(added[0, :100], added[0, 100:], atol=1e-6)
    np.testing.assert_array_equal(mix_audio(clip, other, -10).masks, clip.masks)
    silent = replace(other, waveform=np.zeros((1, 100), np.float32))
    assert mix_audio(clip, silent, -10) is clip and mix_audio(silent, clip, -10) is silent


def test_replace_audio_empties_the_masks_of_annotated_frames_only():
    clip = make_clip()
    changed = replace_audio(clip, np.zeros((1, 200), np.float32))
    np.testing.assert_array_equal(changed.annotated_frames, clip.annotated_frames)
    assert (changed.masks[0] == 0).all() and (changed.masks[1] == 255).all() and changed.waveform.max() == 0


def test_changed_audio_removes_the_published_features():
    clip = replace(make_clip(), log_mel=np.ones((2, 1, 96, 64), np.float32))
    other = make_clip("cat", 1)
    for changed in (amplify(clip, -3), mix_audio(clip, other, -10), replace_audio(clip, other.waveform)):
        assert changed.log_mel is None
    assert flip(clip).log_mel is clip.log_mel


def test_has_unrelated_audio():
    dog, cat = make_clip("dog"), make_clip("cat")
    assert has_unrelated_audio(cat, dog)
    assert not has_unrelated_audio(dog, dog) and not has_unrelated_audio(make_clip("dog", 1), dog)
    assert not has_unrelated_audio(replace(cat, objects=None), dog) and not has_unrelated_audio(
        cat, replace(dog, objects=None)
    )
    assert not has_unrelated_audio(replace(cat, sampling_rate=200), dog) and not has_unrelated_audio(
        replace(cat, waveform=None), dog
    )
    assert not has_unrelated_audio(make_clip("off-the-screen"), dog)


def test_without_transforms_clips_are_unchanged():
    clips = [make_clip("dog"), make_clip("cat", 1)]
    for clip, changed in zip(clips, Augmentation(**OFF)(clips, np.random.default_rng(0)), strict=True):
        assert changed is clip


@pytest.mark.parametrize(
    "settings",
    [
        {"flips": 1.0},
        {"crops": 1.0},
        {"photometric": 1.0},
        {"loudness": 1.0},
        {"mixing": 1.0},
        {"replacement": 1.0, "replacements": ("noise",)},
        {"replacement": 1.0, "replacements": ("silence",)},
        {"replacement": 1.0, "replacements": ("other",)},
    ],
)
def test_each_transform_is_reproducible_and_does_not_modify_its_input(settings):
    clips = [make_clip("dog"), make_clip("cat", 1)]
    before = [(clip.frames.copy(), clip.masks.copy(), clip.waveform.copy()) for clip in clips]
    augmentation = Augmentation(**{**OFF, **settings})
    one, same = (augmentation(clips, np.random.default_rng(5)) for _ in range(2))
    for clip, first, second, arrays in zip(clips, one, same, before, strict=True):
        for name, original in zip(("frames", "masks", "waveform"), arrays, strict=True):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
            np.testing.assert_array_equal(getattr(clip, name), original)
        changes_frames = any(settings.get(name) for name in ("flips", "crops", "photometric"))
        assert np.array_equal(clip.frames, first.frames) != changes_frames
        assert np.array_equal(clip.waveform, first.waveform) == changes_frames
        assert (first.masks[0].max() == 0) == bool(settings.get("replacement"))


def test_draws_differ_and_follow_their_fractions():
    clips = [make_clip("dog")] * 400
    changed = Augmentation(**{**OFF, "flips": 0.3})(clips, np.random.default_rng(0))
    fraction = np.mean([not np.array_equal(clip.frames, clips[0].frames) for clip in changed])
    assert 0.2 < fraction < 0.4


def test_crop_windows_keep_their_area_and_stay_inside():
    augmentation = Augmentation(crop_area=0.6)
    generator = np.random.default_rng(0)
    windows = np.array([augmentation._draw_window(90, 120, generator) for _ in range(300)])
    top, left, height, width = windows.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 90).all() and (left + width <= 120).all()
    assert (height * width / (90 * 120)).min() > 0.58 and len(np.unique(windows, axis=0)) > 250


def test_other_becomes_silence_without_another_clip():
    augmentation = Augmentation(**{**OFF, "replacement": 1.0, "replacements": ("other",)})
    (alone,) = augmentation([make_clip("dog")], np.random.default_rng(0))
    assert alone.waveform.max() == 0 and alone.masks[0].max() == 0
    pair = [make_clip("dog"), make_clip("cat", 1)]
    first, _ = augmentation(pair, np.random.default_rng(0))
    np.testing.assert_allclose(first.waveform[0], pair[1].waveform.mean(axis=0), atol=1e-7)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("flips", value) for value in (1.5, -0.1, float("nan"), "a", None, True)],
        *[("crop_area", 0.0), ("crop_ratio", 0.5), ("crop_ratio", float("nan")), ("crop_ratio", float("inf"))],
        *[("decibels", -3), ("mixing_decibels", [5]), ("mixing_decibels", (-5, -15)), ("mixing_decibels", -5)],
        *[("mixing_decibels", "ab"), ("mixing_decibels", (float("nan"), 0))],
        *[("replacements", value) for value in ((), ("thunder",), "noise", None, [["noise"]])],
    ],
)
def test_invalid_values_are_rejected(name, value):
    with pytest.raises(ValueError, match=rf"^Expected .* as {name}, got"):
        Augmentation(**{name: value})


def test_values_may_have_the_types_of_yaml():
    Augmentation(flips=1, decibels=0, mixing_decibels=[-5, -5], replacements=["noise"])
