"""The counting against hand-computed cases and against independent implementations."""

import doctest

import pytest
import torch
from torch import Tensor

from pcmanet.dataset_scripts.metrics import counts as counts_module
from pcmanet.dataset_scripts.metrics.counts import (
    FIRST_FOREGROUND_CODE,
    ONE_HALF_CODE,
    THRESHOLD_COUNT,
    binary_iou,
    class_counts,
    class_iou,
    code_histogram,
    f_score,
    f_thresholds,
    foreground_counts,
    quantize_probabilities,
    reduce_logits,
    threshold_counts,
)


def naive_curve(probabilities: Tensor, target: Tensor) -> list[float]:
    """F score of one frame at 255 thresholds, as the definition reads: one threshold after the other, precision and recall spelled out."""
    scores = []
    for threshold in torch.linspace(0, 1 - 1e-10, 255):
        predicted = probabilities >= threshold
        true_positives = int((predicted & (target == 1)).sum())
        precision = true_positives / (int(predicted.sum()) + 1e-20)
        recall = true_positives / (int((target == 1).sum()) + 1e-20)
        score = 1.3 * precision * recall / (0.3 * precision + recall) if true_positives else 0.0
        scores.append(score)
    return scores


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(counts_module)
    assert result.attempted >= 15
    assert result.failed == 0


def test_codes_equal_a_binary_search_next_to_every_threshold():
    thresholds = f_thresholds()
    around = [
        thresholds,
        torch.nextafter(thresholds, torch.tensor(2.0)),
        torch.nextafter(thresholds, torch.tensor(-1.0)),
    ]
    spread = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    probabilities = torch.cat([*around, spread]).clamp(0.0, 1.0)
    expected = torch.bucketize(probabilities, thresholds, right=True)
    expected[probabilities == 0.5] = ONE_HALF_CODE
    assert torch.equal(quantize_probabilities(probabilities).long(), expected)


def test_codes_of_the_foreground_are_exactly_the_probabilities_above_one_half():
    half = torch.tensor(0.5)
    probabilities = torch.stack(
        [torch.nextafter(half, torch.tensor(0.0)), half, torch.nextafter(half, torch.tensor(1.0))]
    )
    assert (quantize_probabilities(probabilities) >= FIRST_FOREGROUND_CODE).tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_codes_take_any_float_type(dtype: torch.dtype):
    probabilities = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype)
    assert quantize_probabilities(probabilities).tolist() == [1, 64, 0, 255]


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (-0.25, "-0.25"), (float("nan"), "nan")])
def test_values_that_are_no_probabilities_are_named(value: float, shown: str):
    with pytest.raises(ValueError, match=rf"{shown}.*expected values in \[0, 1\]"):
        quantize_probabilities(torch.tensor([0.5, value]))


def test_no_pixels_have_no_codes():
    assert quantize_probabilities(torch.zeros(0, 4, 4)).shape == (0, 4, 4)


def test_curve_equals_the_loop_over_the_thresholds():
    generator = torch.Generator().manual_seed(7)
    probabilities = (torch.randn(3, 9, 7, generator=generator) * 3).sigmoid()
    probabilities[0, 0, :3] = torch.tensor([0.0, 0.5, 1.0])
    targets = torch.randint(0, 2, (3, 9, 7), generator=generator)
    reached = threshold_counts(code_histogram(quantize_probabilities(probabilities), targets))
    curves = f_score(reached[:, 1], reached.sum(1), targets.sum((1, 2))[:, None])
    for curve, frame, target in zip(curves, probabilities, targets, strict=True):
        assert curve.tolist() == pytest.approx(naive_curve(frame, target), abs=1e-12)


def test_histogram_leaves_ignored_pixels_out():
    codes = quantize_probabilities(torch.tensor([[[0.9, 0.9], [0.1, 0.1]]]))
    histogram = code_histogram(codes, torch.tensor([[[1, 255], [0, 255]]]))
    assert histogram.sum().item() == 2
    assert foreground_counts(histogram).tolist() == [[0, 1]]
    assert threshold_counts(histogram).shape == (1, 2, THRESHOLD_COUNT)


def test_class_counts_equal_one_class_after_the_other():
    generator = torch.Generator().manual_seed(3)
    predictions = torch.randint(0, 5, (4, 6, 6), generator=generator)
    targets = torch.randint(0, 5, (4, 6, 6), generator=generator)
    targets[1, :3] = 255
    counts = class_counts(predictions.to(torch.uint8), targets, num_labels=5)
    for frame in range(4):
        counted = targets[frame] != 255
        for label in range(5):
            predicted, labelled = (predictions[frame] == label) & counted, targets[frame] == label
            expected = [int(mask.sum()) for mask in (predicted & labelled, predicted, labelled)]
            assert [int(count[frame, label]) for count in counts] == expected


@pytest.mark.parametrize(("wrong", "shown"), [(5, "from 0 to 5"), (-1, "from -1 to 0")])
def test_predictions_that_are_no_classes_are_named(wrong: int, shown: str):
    predictions = torch.tensor([[[0, wrong]]])
    with pytest.raises(ValueError, match=f"torch.int64 {shown}, expected class indices from 0 to 4"):
        class_counts(predictions, torch.zeros(1, 1, 2, dtype=torch.long), num_labels=5)


def test_masks_are_not_taken_for_codes():
    with pytest.raises(ValueError, match="codes are torch.int64, expected the uint8 codes of quantize_probabilities"):
        code_histogram(torch.ones(1, 2, 2, dtype=torch.long), torch.ones(1, 2, 2, dtype=torch.long))


def test_two_by_two_by_hand():
    # Prediction 1 1 / 0 0 against target 1 0 / 0 1: one pixel in both, two predicted, two labelled, so IoU 1/3 and P = R = F = 1/2.
    counts = [torch.tensor(count) for count in (1, 2, 2)]
    assert binary_iou(*counts, torch.tensor(4)).item() == pytest.approx(1 / 3, abs=1e-7)
    assert class_iou(*counts).item() == pytest.approx(1 / 3, abs=1e-12)
    assert f_score(*counts).item() == pytest.approx(1 / 2, abs=1e-12)


def test_empty_target_scores_the_pixels_left_empty():
    assert binary_iou(*(torch.tensor(count) for count in (0, 1, 0, 4))).item() == 0.75
    assert binary_iou(*(torch.tensor(count) for count in (0, 0, 0, 0))).item() == 0.0


def test_first_of_equal_classes_wins():
    assert reduce_logits(torch.zeros(1, 1, 4, 2, 2), num_labels=4).unique().tolist() == [0]


def test_many_classes_do_not_overflow_a_byte():
    logits = torch.zeros(1, 1, 300, 1, 1)
    logits[0, 0, 299] = 1.0
    assert reduce_logits(logits, num_labels=300).item() == 299


@pytest.mark.parametrize("num_labels", [1, 3])
def test_logits_with_nan_are_refused(num_labels: int):
    logits = torch.zeros(1, 2, num_labels, 4, 4)
    logits[0, 1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        reduce_logits(logits, num_labels)


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\), expected \(batch, frames, 3, height, width\)"):
        reduce_logits(torch.zeros(2, 3, 4, 4), num_labels=3)
