"""Clips on their way to the network: pairs of sounds, seeded collation, loaders that start at any step."""

import numpy as np
import pytest
import torch
from training_runs import TINY_RUN
from written_trees import write_trees

from pcmanet.dataset_scripts.clip_arrays import to_arrays
from pcmanet.dataset_scripts.synthetic_clips import SoundingShapes
from pcmanet.training.batch_plan import BatchPlan, Draw
from pcmanet.training.clip_loading import (
    PairedSounds,
    TrainingTransform,
    annotated_frames,
    build_collators,
    build_datasets,
    class_names,
    cut_to_square,
    describe_clips,
    training_batches,
    validation_batches,
)
from pcmanet.training.networks import build_processor
from pcmanet.training.recipe import Recipe


CPU = torch.device("cpu")


def test_clips_are_described_by_what_must_not_change(tmp_path):
    write_trees(tmp_path, ms3={"train": 1, "val": 1, "test": 1})
    recipe = Recipe(task="ms3", data=str(tmp_path), freeze=[])
    before = describe_clips(recipe, 1)
    assert describe_clips(recipe, 1) == before
    for split, changes in (("test", False), ("val", True), ("train", True)):
        mask = next(tmp_path.rglob(f"gt_masks/{split}/*/*.png"))
        mask.write_bytes(mask.read_bytes() + b" ")
        after = describe_clips(recipe, 1)
        assert (after != before) is changes
        before = after
    assert after.keys() == {"clips", "the state of the clips' files"}
    # What Sounding Shapes are stands in the recipe.
    assert describe_clips(Recipe(**TINY_RUN), 12) == {"clips": 12}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe(**TINY_RUN, augmentation={"flips": 0.5})


@pytest.fixture(scope="module")
def collate(recipe):
    return build_collators(recipe, build_processor(recipe), binary=True)[0]


@pytest.fixture(scope="module")
def clips() -> SoundingShapes:
    return SoundingShapes("ms3", "train", length=5, height=32, width=32, num_frames=2)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_paired_sounds_show_every_picture_under_two_sounds(clips):
    pairs = PairedSounds(clips)
    assert len(pairs) == 10
    assert np.array_equal(pairs[6].frames, pairs[7].frames)
    assert not np.array_equal(pairs[6].sounding, pairs[7].sounding)
    assert np.array_equal(pairs[6].waveform, clips[3].waveform)


def test_what_is_drawn_depends_on_the_place_alone(collate, clips):
    drawn = [(clips[0], Draw(0, 7)), (clips[1], Draw(1, 8))]
    torch.manual_seed(1)
    first = collate(drawn)
    torch.manual_seed(2)
    assert same(first, collate(drawn))
    # Somewhere in twenty places a clip is mirrored, and somewhere not.
    pictures = {collate([(clips[0], Draw(0, place))])["pixel_values"].sum().item() for place in range(20)}
    assert len(pictures) > 5


def test_collation_leaves_the_generators_alone(collate, clips):
    torch.manual_seed(1)
    np.random.seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    collate([(clips[0], Draw(0, 0))])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_a_clip_that_does_not_count_has_no_annotated_frame(collate, clips):
    batch = collate([(clips[0], Draw(0, 0)), (clips[0], Draw(0, 0, counts=False))])
    assert annotated_frames(batch).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_start_in_the_middle_gives_the_same_batches(num_workers, collate, clips):
    plan = BatchPlan(num_clips=5, batch_size=2, rounds=1, processes=1, epochs=2, shuffle=True, seed=0)
    whole = list(training_batches(clips, plan, (0, 6), 0, collate, 0, CPU))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rest = list(training_batches(clips, plan, (3, 6), 0, collate, num_workers, CPU))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(whole) == 6 and len(rest) == 3
    for expected, found in zip(whole[3:], rest, strict=True):
        assert all(same(*pair) for pair in zip(expected, found, strict=True))


def test_validation_batches_do_not_depend_on_the_processes():
    alone = validation_batches(7, 3, 0, 1)
    assert alone == [[0, 1, 2], [3, 4, 5], [6]]
    shares = [validation_batches(7, 3, process, 2) for process in (0, 1)]
    assert shares == [[[0, 1, 2], [6]], [[3, 4, 5]]]
    assert validation_batches(2, 3, 1, 2) == []


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (47, 32)])
def test_a_crop_keeps_the_middle_square(shape):
    clip = to_arrays(SoundingShapes("ms3", "train", length=1, height=shape[0], width=shape[1])[0], binary=True)
    square = cut_to_square(clip)
    side, top, left = min(shape), (shape[0] - min(shape)) // 2, (shape[1] - min(shape)) // 2
    assert square.frames.shape[1:] == (side, side, 3)
    assert np.array_equal(square.frames, clip.frames[:, top : top + side, left : left + side])
    assert np.array_equal(square.masks, clip.masks[:, top : top + side, left : left + side])
    transform = TrainingTransform(centre_crop=True, augmentation=None)
    assert not transform.changes_sound
    assert np.array_equal(transform([clip], np.random.default_rng(0))[0].frames, square.frames)


def test_training_clips_are_changed_and_validation_clips_are_not(clips):
    recipe = Recipe(**TINY_RUN, augmentation={"photometric": 1.0})
    training, validation = build_collators(recipe, build_processor(recipe), binary=True)
    plain, _ = build_collators(Recipe(**TINY_RUN), build_processor(recipe), binary=True)
    drawn = [(clips[0], Draw(0, 0))]
    assert torch.equal(plain(drawn)["pixel_values"], validation([clips[0]])["pixel_values"])
    assert not torch.equal(training(drawn)["pixel_values"], validation([clips[0]])["pixel_values"])


def test_data_of_a_recipe():
    settings = {**TINY_RUN, "pair_sounds": True, "clips": 8, "negative_fraction": 0.5}
    training, validation = build_datasets(Recipe(**settings))
    assert (len(training), len(validation)) == (8, 3)
    # Half of all clips are negative, so every first clip of a pair is.
    assert [training[index].negative is not None for index in range(8)] == [True, False] * 4
    assert class_names(Recipe(**TINY_RUN)) == ["sounding"]
    assert len(class_names(Recipe(**{**TINY_RUN, "task": "avss"}))) == 13
