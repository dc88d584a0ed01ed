"""Cached features of benchmarks/paired_features.py: masks of combined pictures and recordings, order of clips, measures."""

from argparse import Namespace

import numpy as np
import paired_features
import pytest
import torch


SIZE = paired_features.MASK_SIZE


@pytest.fixture
def features():
    """Four pictures and five recordings: object 1 on the left and object 2 on the right, one of them, or neither is in view."""
    visible = np.zeros((4, SIZE, SIZE), np.uint8)
    visible[0, :, : SIZE // 2], visible[0, :, SIZE // 2 :] = 1, 2
    visible[1, : SIZE // 2], visible[2, : SIZE // 4] = 2, 1
    visible[0, 0] = 255
    maps = [torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, side, side).half() for side in paired_features.MAP_SIZES]
    return paired_features.Features(maps, visible, torch.arange(5.0)[:, None], np.array([1, 2, 2, 3, 0]))


def test_masks_show_what_is_visible_and_sounds(features):
    clips = paired_features.Combinations(features, seed=0)
    batch = clips.batch([0, 2], [[0, 2, 4], [1, 0, 3]])
    assert batch["audio_embeds"].flatten().tolist() == [0, 2, 4, 1, 0, 3]
    first, second = batch["labels"]
    for frame, left in ((0, 1), (1, 0)):
        assert (first[frame, 1:, : SIZE // 2] == left).all() and (first[frame, 1:, SIZE // 2 :] == 1 - left).all()
        assert (first[frame, 0] == 255).all()
    assert not first[2].any()  # nothing sounds to which void pixels could belong
    assert [frame.unique().tolist() for frame in second] == [[0], [0, 1], [0]]
    assert (second[1, : SIZE // 4] == 1).all()


def test_masks_of_classes_are_those_of_binary_masks(features):
    chosen = [0, 2], [[0, 2, 4], [1, 0, 3]]
    binary, classes = (
        paired_features.Combinations(features, seed=0, binary=kind).batch(*chosen)["labels"] for kind in (True, False)
    )
    sounding = torch.tensor([[1, 2, 0], [2, 1, 3]])[..., None, None]
    assert torch.equal(classes, torch.where(binary == 1, sounding, binary))


def test_each_frame_gets_the_maps_of_its_picture(features):
    clips = paired_features.Combinations(features, seed=0)
    backbone = paired_features.CachedBackbone(type("Backbone", (), {"channels": [3, 3, 3, 3]}))
    backbone.maps = features.maps
    pixels = clips.batch([3, 1], [[0, 1], [2, 3]])["pixel_values"]
    for level in backbone(pixels.flatten(0, 1)).feature_maps:
        assert level[:, 0, 0, 0].tolist() == [3, 3, 1, 1]


def test_clips_depend_on_the_seed_alone(features):
    def draw(seed):
        clips = paired_features.Combinations(features, seed)
        return torch.cat([batch["audio_embeds"] for batch in clips.training_batches(3)])

    paired_features.CLIPS, before = 2, paired_features.CLIPS
    try:
        assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    finally:
        paired_features.CLIPS = before


def test_measures_by_hand(features):
    clips = paired_features.Combinations(features, seed=0)
    visible, results = features.visible[0], paired_features._Results()
    truth = clips.batch([0], [[0, 1, 3]])["labels"][0].numpy()
    masks = np.zeros(truth.shape, bool)
    masks[0][visible == 1] = True  # all of its object
    masks[1][visible == 2] = True
    masks[1][:, : SIZE // 4] = True  # and half of the silent one
    masks[2][: SIZE // 4] = True
    results.add([1, 2], masks, truth, visible)
    results.unknown += [0.1, 0.3]
    assert results.compute() == {
        "mIoU": pytest.approx((1 + 1 / 1.5) / 2),
        "both right": 0.0,
        "FPR, silent": pytest.approx(0.25),
        "FPR, absent": pytest.approx(0.25),
        "FPR, unknown": pytest.approx(0.2),
    }
    masks[1][:, 0] = False  # less than half of it
    results.add([1, 2], masks, truth, visible)
    assert results.compute()["both right"] == 0.5


def test_recordings_of_a_measured_clip(features):
    clips = paired_features.Combinations(features, seed=0)
    for picture, classes in ((0, {1, 2}), (1, {2}), (2, {1})):
        pair, (first, second, absent) = paired_features._choose(clips, picture)
        assert set(pair) == classes and [features.sounding[first], features.sounding[second]] == pair
        assert features.sounding[absent] not in {0} | classes
    assert clips.draw_recording(0) == 4 and 0 not in clips.visible_classes(1)


def test_cached_features_are_of_the_same_settings(features, tmp_path):
    data = tmp_path / "data.yaml"
    data.write_text("cache: here\n", encoding="utf-8")
    for split, length in (("train", 4), ("val", 2)):
        torch.save(tuple(features), tmp_path / f"features_{split}_{length}.pt")
    args = Namespace(output=tmp_path, data=data, model="a model", clips=4, test_clips=2)
    for _ in range(2):
        loaded, _ = paired_features.load_features(args, None)
        assert loaded.sounding.tolist() == features.sounding.tolist()
    data.write_text("cache: there\n", encoding="utf-8")
    args.model = "another model"
    with pytest.raises(ValueError, match="model is 'another model', was 'a model'; data.cache is 'there', was 'here'"):
        paired_features.load_features(args, None)
