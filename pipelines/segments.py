"""Logits of one frame -> its segments at the video's size."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import interpolate, max_pool2d, pad


# Classes brought to the video's size at a time: all 71 of a 1080p frame at once would be 590 MB.
CLASSES_AT_ONCE = 8

# A class that is so far behind another one has less than 1e-7 of its probability, the rounding error of a float.
NEGLIGIBLE_LOGIT = 16.0


def find_segments(
    logits: torch.Tensor,
    size: tuple[int, int],
    id2label: Mapping[int, str],
    threshold: float | None = None,
    minimum_area: float = 0.0,
) -> list[dict[str, Any]]:
    """Makes the segments of one frame.

    Args:
        logits: (num_labels, network height, network width); one label means sigmoid, several mean softmax.
        size: (height, width) of the video.
        id2label: Names of the classes; of several, class 0 is the background.
        threshold: Probability that a pixel has to exceed, in [0, 1]; by default 0.5 for one label, 0 for several.
        minimum_area: Smallest share of the picture that counts.

    Returns:
        `{"score", "label", "mask"}` of every class that is there, the highest score first. The mask is a PIL image of
        mode "L", 0 or 255; the score is the mean probability inside it, in [0, 1].
    """
    is_binary = len(logits) == 1
    class_ids, probability = _most_probable_class(logits, size)
    inside = probability > (threshold if threshold is not None else 0.5 * is_binary)
    if not is_binary:
        inside &= class_ids != 0

    # Counted and summed in one pass for all classes; a mask is only made for those that stay.
    found = class_ids[inside]
    counts = torch.bincount(found)
    sums = torch.bincount(found, weights=probability[inside].double())
    segments = [
        {
            "score": (sums[class_id] / counts[class_id]).item(),
            "label": id2label[class_id],
            "mask": Image.fromarray((inside & (class_ids == class_id)).to(torch.uint8).mul(255).numpy()),
        }
        for class_id in counts.nonzero().flatten().tolist()
        if counts[class_id] >= minimum_area * inside.numel()
    ]
    return sorted(segments, key=lambda segment: -segment["score"])


def _most_probable_class(logits: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds each pixel's most probable class and its probability at the video's size, a few classes at a time.

    Args:
        logits: (num_labels, network height, network width); one label means sigmoid, several mean softmax.
        size: (height, width) of the video.

    Returns:
        Class ids, int64 of shape (height, width), the first of equals; and probabilities in [0, 1], same shape.
    """
    if len(logits) == 1:
        return torch.zeros(size, dtype=torch.int64), _resized(logits, size)[0].sigmoid()
    classes = _classes_that_matter(logits)
    winner = torch.zeros(size, dtype=torch.int64)
    best = torch.full(size, -math.inf)
    total = torch.full(size, -math.inf)
    for some in classes.split(CLASSES_AT_ONCE):
        resized = _resized(logits[some], size)
        highest, index = resized.max(dim=0)
        winner = torch.where(highest > best, some[index], winner)
        best = torch.maximum(best, highest)
        total = torch.logaddexp(total, resized.logsumexp(dim=0))
    return winner, (best - total).exp()


def _classes_that_matter(logits: torch.Tensor) -> torch.Tensor:
    """Lists the classes that can win a pixel or weigh in its probability, wherever it lies between those of the network.

    A resized logit is a mean of the four around it. So nowhere can a class that is behind the lowest of another class's
    four with its highest be more probable than that; if it is far behind, its probability is nothing.
    """
    lowest, highest = -_highest_of_four(-logits), _highest_of_four(logits)
    behind = lowest.amax(dim=0) - highest
    return torch.nonzero(behind.flatten(1).amin(dim=1) < NEGLIGIBLE_LOGIT).flatten()


def _highest_of_four(logits: torch.Tensor) -> torch.Tensor:
    """Returns the highest of each four neighbours, those at the border repeated."""
    return max_pool2d(pad(logits[None], (1, 1, 1, 1), mode="replicate"), 2, stride=1)[0]


def _resized(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Brings logits to the video's size."""
    return interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
