"""Logits of one frame -> its segments at the video's size."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, pad


# Classes brought to the video's size at a time: all 71 of a 1080p frame at once would be 590 MB.
CLASSES_AT_ONCE = 8

# A class that is so far behind another one has less than 1e-7 of its probability, the rounding error of a float.
NEGLIGIBLE_LOGIT = 16.0

# What rounding may add to a logit or to a probability on the way to the video's size.
LOGIT_ROUNDING = 1e-3
PROBABILITY_ROUNDING = 1e-6

# Rows and columns of the video.
Box = tuple[slice, slice]


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
        mode "L", 0 or 255, at the video's size; the score is the mean probability inside it, in [0, 1].
    """
    is_binary = len(logits) == 1
    threshold = threshold if threshold is not None else 0.5 * is_binary
    gaps = _gaps_of_segments(logits, threshold)
    if not gaps.any():
        return []
    box = _pixels_of(gaps.any(dim=1), size[0]), _pixels_of(gaps.any(dim=0), size[1])
    classes = _classes_that_matter(logits, gaps)
    class_ids, probability = (values.numpy() for values in _most_probable_class(logits, classes, size, box))
    inside = probability > threshold

    segments = []
    for class_id in range(0 if is_binary else 1, len(logits)):
        mask = inside & (class_ids == class_id)
        area = np.count_nonzero(mask)
        if area and area >= minimum_area * math.prod(size):
            score = float(probability[mask].mean(dtype=np.float64))
            segments.append({"score": score, "label": id2label[class_id], "mask": _mask_image(mask, size, box)})
    return sorted(segments, key=lambda segment: -segment["score"])


def _mask_image(mask: np.ndarray, size: tuple[int, int], box: Box) -> Image.Image:
    """Makes the image of the video's size, 0 or 255, from a mask of the box."""
    picture = np.zeros(size, np.uint8)
    np.multiply(mask, np.uint8(255), out=picture[box])
    return Image.fromarray(picture)


def _gaps_of_segments(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Finds where there can be a segment: a resized logit lies between the lowest and the highest of the four around it.

    Returns:
        (network height + 1, network width + 1), bool, the gaps before, between and after the network's pixels.
    """
    if len(logits) == 1:
        return _highest_of_four(logits)[0].sigmoid() > threshold - PROBABILITY_ROUNDING
    ahead = _highest_of_four(logits[1:]).amax(dim=0) + _highest_of_four(-logits[:1])[0]
    return ahead > -LOGIT_ROUNDING


def _pixels_of(gaps: torch.Tensor, length: int) -> slice:
    """Finds, along one axis, the pixels of the video from the first gap with a segment to the last.

    Args:
        gaps: (network pixels + 1,), bool.
        length: Pixels of the video.
    """
    # Where `interpolate` takes a pixel from; one more on either side, because it rounds.
    places = (torch.arange(length) + 0.5) * ((len(gaps) - 1) / length) - 0.5
    inside = gaps[places.floor().long() + 1].nonzero().flatten().tolist()
    return slice(max(0, inside[0] - 1), min(length, inside[-1] + 2)) if inside else slice(0)


def _most_probable_class(
    logits: torch.Tensor, classes: torch.Tensor, size: tuple[int, int], box: Box
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds each pixel's most probable class and its probability inside a box, a few classes at a time.

    Args:
        logits: (num_labels, network height, network width); one label means sigmoid, several mean softmax.
        classes: The labels to look at, in ascending order.
        size: (height, width) of the video.
        box: The part of the video, (box height, box width).

    Returns:
        Class ids, int16 of shape (box height, box width), the first of equals; and probabilities in [0, 1], same shape.
    """
    if len(logits) == 1:
        probability = _resized(logits, size, box)[0].sigmoid()
        return torch.zeros(probability.shape, dtype=torch.int16), probability
    winner = best = total = None
    for some in classes.split(CLASSES_AT_ONCE):
        resized = _resized(logits[some], size, box)
        highest, index = resized.max(dim=0)
        highest_class = some.to(torch.int16)[index]  # small, because each class is compared with every pixel
        sum_of_some = highest + resized.sub_(highest).exp_().sum(dim=0).log()  # logsumexp without a second maximum
        if winner is None:
            winner, best, total = highest_class, highest, sum_of_some
        else:
            winner = torch.where(highest > best, highest_class, winner)
            best, total = torch.maximum(best, highest), torch.logaddexp(total, sum_of_some)
    return winner, (best - total).exp()


def _classes_that_matter(logits: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
    """Lists the background and the classes that can win a pixel in these gaps or weigh in its probability.

    Nowhere can a class that is behind the lowest of another class's four logits with its highest be more probable than
    that; if it is far behind, its probability is nothing.
    """
    behind = -_highest_of_four(-logits).amax(dim=0) - _highest_of_four(logits)
    matters = behind[:, gaps].amin(dim=1) < NEGLIGIBLE_LOGIT
    matters[0] = True
    return torch.nonzero(matters).flatten()


def _highest_of_four(logits: torch.Tensor) -> torch.Tensor:
    """Returns the highest of each four neighbours, those at the border repeated."""
    padded = pad(logits[None], (1, 1, 1, 1), mode="replicate")[0]
    pairs = torch.maximum(padded[:, :-1], padded[:, 1:])
    return torch.maximum(pairs[..., :-1], pairs[..., 1:])


def _resized(logits: torch.Tensor, size: tuple[int, int], box: Box) -> torch.Tensor:
    """Brings logits to the video's size; returns what is inside a box."""
    return interpolate(logits[None], size, mode="bilinear", align_corners=False)[0][:, *box].contiguous()
