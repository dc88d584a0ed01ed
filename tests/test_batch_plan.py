"""Which clips are in which step, whoever shares it and wherever a run starts."""

import pytest

from pcmanet.training.batch_plan import BatchPlan


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
