"""Segments from logits: leaving out classes and pixels does not change the result."""

import numpy as np
import pytest
import torch

from pcmanet.pipelines.segments import find_segments


NAMES = {index: f"class {index}" for index in range(71)}


def expected_segments(
    logits: torch.Tensor, size: tuple[int, int], threshold: float
) -> dict[str, tuple[float, np.ndarray]]:
    """Compute all classes at full size at once."""
    probabilities = torch.nn.functional.interpolate(logits[None].double(), size, mode="bilinear")[0].softmax(dim=0)
    best, winner = probabilities.max(dim=0)
    found = {}
    for index in range(1, len(logits)):
        mask = (winner == index) & (best > threshold)
        if mask.any():
            found[NAMES[index]] = (best[mask].mean().item(), mask.numpy())
    return found


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("size", [(14, 14), (45, 64), (9, 5)])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_equals_all_classes_at_full_size(spread: float, size: tuple[int, int], threshold: float | None):
    logits = spread * torch.randn(71, 14, 14, generator=torch.Generator().manual_seed(1))
    logits[0, :7] += 2 * spread
    found = find_segments(logits, size, NAMES, threshold)
    expected = expected_segments(logits, size, threshold or 0.0)
    assert {segment["label"] for segment in found} == set(expected)
    assert [segment["score"] for segment in found] == sorted((s["score"] for s in found), reverse=True)
    for segment in found:
        score, mask = expected[segment["label"]]
        assert segment["mask"].size == size[::-1]
        assert ((np.asarray(segment["mask"]) == 255) != mask).mean() < 1e-3
        assert segment["score"] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("size", [(45, 64), (9, 5), (113, 71)])
@pytest.mark.parametrize(("labels", "threshold"), [(1, None), (1, 0.9), (1, 0.0), (6, None), (6, 0.4)])
def test_candidate_pixels_and_classes_cover_all_segments(labels: int, threshold: float | None, size: tuple[int, int]):
    # Two blobs in one corner and one pixel of a third: elsewhere the background wins by far.
    logits = torch.full((labels, 14, 14), -20.0)
    logits[0] = -20.0 if labels == 1 else 5.0
    logits[-1, 2:5, 3:6], logits[labels // 2, 4:7, 8:9], logits[-1, 13, 0] = 6.0, 7.0, 20.0
    resized = torch.nn.functional.interpolate(logits[None], size, mode="bilinear")[0]
    probabilities = resized.sigmoid() if labels == 1 else resized.softmax(dim=0)
    best, winner = probabilities.max(dim=0)
    found = {
        segment["label"]: np.asarray(segment["mask"]) for segment in find_segments(logits, size, NAMES, threshold)
    }
    for index in range(labels > 1, labels):
        expected = (winner == index) & (best > (threshold if threshold is not None else 0.5 * (labels == 1)))
        np.testing.assert_array_equal(found.get(NAMES[index], np.zeros(size, np.uint8)) == 255, expected.numpy())


def test_a_tie_goes_to_the_first_class():
    logits = torch.zeros(5, 4, 4)
    logits[2:4] = 7.0
    (segment,) = find_segments(logits, (8, 8), NAMES)
    assert segment["label"] == "class 2"
    assert segment["score"] == pytest.approx(1 / (2 + 3 * np.exp(-7.0)), rel=1e-4)


def test_background_everywhere_gives_no_segment():
    logits = torch.zeros(71, 6, 6)
    logits[0] = 50.0
    assert find_segments(logits, (30, 30), NAMES) == []


@pytest.mark.parametrize(("threshold", "area"), [(None, 0.5), (0.9, 0.25), (1.0, 0.0)])
def test_binary(threshold: float | None, area: float):
    logits = torch.tensor([-5.0, -1.0, 1.0, 5.0]).repeat(4, 1)[None]
    found = find_segments(logits, (4, 4), {0: "sounding"}, threshold)
    assert sum(np.asarray(segment["mask"]).mean() / 255 for segment in found) == area


def test_minimum_area():
    logits = torch.full((3, 4, 4), -5.0)
    logits[1], logits[2, 0, 0] = 5.0, 9.0
    areas = {s["label"]: np.asarray(s["mask"]).mean() / 255 for s in find_segments(logits, (4, 4), NAMES)}
    assert areas == {"class 1": 15 / 16, "class 2": 1 / 16}
    assert [s["label"] for s in find_segments(logits, (4, 4), NAMES, minimum_area=0.1)] == ["class 1"]


@pytest.mark.parametrize("labels", [1, 5])
def test_logits_that_are_not_numbers_are_no_silence(labels: int):
    """As of weights in float16 whose activations overflow."""
    logits = torch.full((labels, 14, 14), -20.0)
    logits[-1, 3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"not numbers \(NaN\).*dtype=torch.bfloat16 or torch.float32"):
        find_segments(logits, (45, 64), NAMES)
