"""When to evaluate, what is the best, and when to stop."""

import pytest

from pcmanet.training.progress import Progress, evaluation_steps


@pytest.mark.parametrize(
    ("steps", "evaluations", "evaluate_from", "expected"),
    [
        (100, 4, 0.0, {25, 50, 75, 100}),
        (10, 3, 0.0, {3, 7, 10}),
        (3, 10, 0.0, {1, 2, 3}),
        (1, 1, 0.0, {1}),
        # Published for AVSS: every second of 60 epochs, here of two steps, from epoch 15 on.
        (120, 30, 0.25, set(range(32, 121, 4))),
        (100, 4, 1.0, {100}),
    ],
)
def test_evaluations_are_evenly_spaced_and_end_at_the_end(steps, evaluations, evaluate_from, expected):
    assert evaluation_steps(steps, evaluations, evaluate_from) == expected


def test_the_best_is_kept_and_patience_counts_from_it():
    progress = Progress()
    taken = []
    for step, miou in enumerate([0.3, 0.5, 0.5, 0.4], start=1):
        progress.step = step
        taken.append((progress.take({"miou": miou}, patience=2), progress.stale, progress.stopped))
    assert taken == [(True, 0, False), (True, 0, False), (False, 1, False), (False, 2, True)]
    assert (progress.best, progress.best_step) == ({"miou": 0.5}, 2)
    assert (progress.figures, progress.evaluated_step) == ({"miou": 0.4}, 4)
    assert Progress(**progress.to_dict()) == progress


def test_without_patience_a_run_never_stops_early():
    progress = Progress()
    for _ in range(50):
        progress.take({"miou": 0.0}, patience=None)
    assert not progress.stopped
