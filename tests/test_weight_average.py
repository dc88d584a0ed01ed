"""The averaged weights: by hand, without average, and through a checkpoint."""

import pytest
import torch
from accelerate import Accelerator
from tiny_model import tiny_model
from torch import nn

from pcmanet.training.weight_average import WeightAverage


def network(value: float) -> nn.Module:
    module = nn.BatchNorm1d(1)
    nn.init.constant_(module.weight, value)
    module.running_mean.fill_(10 * value)
    module.num_batches_tracked.fill_(int(value))
    return module


def test_the_first_step_replaces_and_the_others_blend():
    average = WeightAverage(network(100.0), decay=0.1)
    for value in (1.0, 3.0, 8.0):
        average.update(network(value))
    second = 1 / 11 * 1 + 10 / 11 * 3
    expected = 0.1 * second + 0.9 * 8
    assert average.network.weight.item() == pytest.approx(expected)
    assert average.network.running_mean.item() == pytest.approx(10 * expected)
    assert average.network.num_batches_tracked.item() == 8  # whole numbers are taken over


def test_a_short_run_is_not_ruled_by_its_first_step():
    average = WeightAverage(network(0.0), decay=0.998)
    average.update(network(100.0))
    for _ in range(49):
        average.update(network(1.0))
    assert average.network.weight.item() == pytest.approx(1.0, abs=1e-3)


def test_without_average_the_weights_are_taken_when_they_are_asked_for():
    average = WeightAverage(network(1.0), decay=None)
    average.update(network(2.0))
    assert average.network.weight.item() == 1.0
    assert average.synchronized(network(3.0), Accelerator(cpu=True)).weight.item() == 3.0


def test_the_copy_is_its_own_frozen_and_in_evaluation():
    model = tiny_model().train()
    average = WeightAverage(model, decay=0.9)
    assert model.training and not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    average.update(model)
    with torch.no_grad():
        next(model.model.neck.parameters()).add_(1.0)
    kept = average.network.model.neck.state_dict()
    changed = model.model.neck.state_dict()
    assert [name for name in kept if not torch.equal(kept[name], changed[name])] == ["0.0.weight"]


@pytest.mark.parametrize("decay", [0.05, None])
def test_a_state_goes_on_where_it_was_taken(decay):
    first = WeightAverage(network(1.0), decay)
    first.update(network(1.0))
    second = WeightAverage(network(7.0), decay)
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update(network(5.0))
    found = [average.synchronized(network(5.0), Accelerator(cpu=True)).weight.item() for average in (first, second)]
    assert found[0] == found[1] == pytest.approx(4.8 if decay else 5.0)
