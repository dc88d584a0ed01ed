"""The robustness measures against numbers computed by hand."""

import doctest

import pytest
import torch
from torch import Tensor

from pcmanet.dataset_scripts import robustness_metrics
from pcmanet.dataset_scripts.robustness_metrics import RobustnessMetrics


LABELS = torch.tensor([[1, 0], [0, 0]]).view(1, 1, 2, 2)


def logits_of(mask: list[list[int]]) -> Tensor:
    return (torch.tensor(mask).view(1, 1, 1, 2, 2) * 2.0 - 1.0) * 9.0


def fill(metrics: RobustnessMetrics) -> None:
    metrics.update(logits_of([[1, 1], [0, 0]]), LABELS)  # IoU 1/2, F = 1.3 / 2.3
    metrics.update(logits_of([[1, 0], [0, 0]]), LABELS, audio="silence")  # rate 1/4
    metrics.update(logits_of([[1, 1], [1, 0]]), LABELS, audio="off_screen")  # rate 3/4


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(robustness_metrics)
    assert result.attempted >= 6
    assert result.failed == 0


def test_combined_scores_by_hand():
    metrics = RobustnessMetrics()
    fill(metrics)
    scores = metrics.compute()
    expected = {
        "miou": 1 / 2,
        "f_score": 13 / 23,
        "false_positive_rate": 1 / 2,
        "false_positive_rate_silence": 1 / 4,
        "false_positive_rate_off_screen": 3 / 4,
        "g_miou": 1 / 2,
        "g_f_score": 2 * 13 / 23 * 0.5 / (13 / 23 + 0.5),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert "false_positive_rate_noise" not in scores
    assert len(metrics) == 3


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("protocol", ["official", "batch", "dataset"])
def test_model_that_never_listens_scores_nothing(num_labels: int, protocol: str):
    metrics = RobustnessMetrics(num_labels, protocol)
    logits = torch.full((2, 3, num_labels, 4, 4), 9.0)
    if num_labels > 1:
        logits[:, :, 0] = -9.0
    labels = torch.ones(2, 3, 4, 4, dtype=torch.long)
    metrics.update(logits, labels)
    metrics.update(logits, labels, audio="noise")
    scores = metrics.compute()
    assert scores["false_positive_rate"] == 1.0
    assert scores["g_miou"] == scores["g_f_score"] == 0.0


def test_ignored_pixels_stay_ignored_with_negative_audio():
    metrics = RobustnessMetrics()
    fill(metrics)
    metrics.update(logits_of([[1, 0], [0, 0]]), torch.tensor([[255, 1], [1, 0]]).view(1, 1, 2, 2), audio="noise")
    assert metrics.compute()["false_positive_rate_noise"] == 0.0


def test_merging_loading_and_gathering_keep_the_numbers():
    whole, first, second = RobustnessMetrics(), RobustnessMetrics(), RobustnessMetrics()
    fill(whole)
    fill(whole)
    fill(first)
    fill(second)
    first.merge(second)
    loaded = RobustnessMetrics()
    loaded.load_state_dict(first.state_dict())
    gathered = loaded.gather()
    loaded.reset()
    assert len(loaded) == 0
    assert first.compute() == gathered.compute() == whole.compute()


def test_missing_negative_audio_is_an_error():
    metrics = RobustnessMetrics()
    metrics.update(logits_of([[1, 1], [0, 0]]), LABELS)
    with pytest.raises(ValueError, match=r"no negative audio was counted.*'silence', 'noise', 'off_screen'"):
        metrics.compute()


def test_unknown_audio_is_named():
    with pytest.raises(ValueError, match="audio is 'music', expected one of"):
        RobustnessMetrics().update(logits_of([[1, 1], [0, 0]]), LABELS, audio="music")
