"""Which clips are in which step, whoever shares it and wherever a run starts. Clips on their way to the network: pairs of sounds, seeded collation, loaders that start at any step."""

import numpy as np
import pytest
import torch
from training_runs import TINY_RUN
from written_trees import write_trees

from pcmanet.dataset_scripts.clips import to_arrays
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundingShapes
from pcmanet.training.data import (
    BatchPlan,
    Draw,
    PairedSounds,
    TrainingTransform,
    build_collators,
    build_datasets,
    class_names,
    cut_to_square,
    describe_clips,
    scored_frames,
    training_batches,
    validation_batches,
)
from pcmanet.training.network import build_processor
from pcmanet.training.recipe import Recipe


def plan(**changes) -> BatchPlan:
    settings = {"num_clips": 11, "batch_size": 4, "rounds": 1, "processes": 1, "epochs": 2, "shuffle": True, "seed": 3}
    return BatchPlan(**{**settings, **changes})


def clips_of(shares) -> list[int]:
    return sorted(draw.clip for rounds in shares for draws in rounds for draw in draws if draw.counts)


def test_every_epoch_has_every_clip_once_in_its_own_order():
    one = plan()
    assert (one.steps_per_epoch, one.steps) == (3, 6)
    epochs = [[draw for step in range(first, first + 3) for draw in one.share(step, 0)[0]] for first in (0, 3)]
    orders = [[draw.clip for draw in epoch] for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(11))
    assert orders[0] != orders[1]
    assert [draw.place for draw in epochs[1]] == list(range(11, 22))
    assert [one.clips_before(step) for step in (0, 1, 2, 3, 4, 6)] == [0, 4, 8, 11, 15, 22]


def test_the_order_follows_the_seed_or_the_data():
    assert plan().share(0, 0) == plan().share(0, 0) != plan(seed=4).share(0, 0)
    assert [draw.clip for draw in plan(shuffle=False).share(4, 0)[0]] == [4, 5, 6, 7]


@pytest.mark.parametrize("processes, rounds", [(1, 2), (2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("step", range(6))
def test_a_step_has_the_same_clips_however_it_is_shared(processes, rounds, step):
    shared = plan(processes=processes, rounds=rounds)
    shares = [shared.share(step, process) for process in range(processes)]
    assert clips_of(shares) == clips_of([plan().share(step, 0)])
    # All processes join in every exchange of gradients, and none gets more than one clip more than another.
    assert len({len(rounds) for rounds in shares}) == 1
    for parts in zip(*shares, strict=True):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_who_has_no_clip_left_repeats_one_that_does_not_count():
    # The third step has three clips for four processes.
    alone = plan(processes=4).share(2, 3)
    assert len(alone) == 1 and len(alone[0]) == 1
    assert not alone[0][0].counts
    assert alone[0][0].clip == plan(processes=4).share(2, 0)[0][0].clip


def test_a_start_in_the_middle_gives_the_rest():
    shared = plan(processes=2, rounds=2)
    whole = list(shared.micro_batches(0, 6, 1))
    before = list(shared.micro_batches(0, 4, 1))
    assert before + list(shared.micro_batches(4, 6, 1)) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"processes": 3},
            "batch_size is 4 clips, which 3 processes times 1 gradient_accumulation cannot share evenly",
        ),
        ({"num_clips": 0}, "there are no training clips"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


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
    assert scored_frames(batch).tolist() == [[True, True], [False, False]]


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
