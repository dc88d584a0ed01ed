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
    box = _box_of_segments(logits, size, threshold)
    if box is None:
        return []
    class_ids, probability = (values.numpy() for values in _most_probable_class(logits, size, box))
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


def _box_of_segments(logits: torch.Tensor, size: tuple[int, int], threshold: float) -> Box | None:
    """Finds the part of the picture outside which there can be no segment, or None where there can be none at all.

    A resized logit is a mean of the four around it, so it lies between the lowest and the highest of them.
    """
    if len(logits) == 1:
        possible = _highest_of_four(logits)[0].sigmoid() > threshold - PROBABILITY_ROUNDING
    else:
        ahead = _highest_of_four(logits[1:]).amax(dim=0) + _highest_of_four(-logits[:1])[0]
        possible = ahead > -LOGIT_ROUNDING
    rows, columns = (_pixels_of(possible.any(dim=1 - axis), size[axis]) for axis in (0, 1))
    return (rows, columns) if rows.stop and columns.stop else None


def _pixels_of(possible: torch.Tensor, length: int) -> slice:
    """Finds, along one axis, the pixels of the video from the first possible gap of the network's grid to the last.

    Args:
        possible: (network pixels + 1,), the gaps before, between and after the network's pixels.
        length: Pixels of the video.
    """
    # Where `interpolate` takes a pixel from; one more on either side, because it rounds.
    places = (torch.arange(length) + 0.5) * ((len(possible) - 1) / length) - 0.5
    inside = possible[places.floor().long() + 1].nonzero().flatten().tolist()
    return slice(max(0, inside[0] - 1), min(length, inside[-1] + 2)) if inside else slice(0)


def _most_probable_class(logits: torch.Tensor, size: tuple[int, int], box: Box) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds each pixel's most probable class and its probability inside a box, a few classes at a time.

    Args:
        logits: (num_labels, network height, network width); one label means sigmoid, several mean softmax.
        size: (height, width) of the video.
        box: The part of the video, (box height, box width).

    Returns:
        Class ids, int16 of shape (box height, box width), the first of equals; and probabilities in [0, 1], same shape.
    """
    if len(logits) == 1:
        probability = _resized(logits, size, box)[0].sigmoid()
        return torch.zeros(probability.shape, dtype=torch.int16), probability
    winner = best = total = None
    for some in _classes_that_matter(logits).split(CLASSES_AT_ONCE):
        resized = _resized(logits[some], size, box)
        highest, index = resized.max(dim=0)
        highest_class = some.to(torch.int16)[index]  # small, because each class is compared with every pixel
        sum_of_some = resized.logsumexp(dim=0)
        if winner is None:
            winner, best, total = highest_class, highest, sum_of_some
        else:
            winner = torch.where(highest > best, highest_class, winner)
            best, total = torch.maximum(best, highest), torch.logaddexp(total, sum_of_some)
    return winner, (best - total).exp()


def _classes_that_matter(logits: torch.Tensor) -> torch.Tensor:
    """Lists the classes that can win a pixel or weigh in its probability, wherever it lies between those of the network.

    Nowhere can a class that is behind the lowest of another class's four logits with its highest be more probable than
    that; if it is far behind, its probability is nothing.
    """
    behind = -_highest_of_four(-logits).amax(dim=0) - _highest_of_four(logits)
    return torch.nonzero(behind.flatten(1).amin(dim=1) < NEGLIGIBLE_LOGIT).flatten()


def _highest_of_four(logits: torch.Tensor) -> torch.Tensor:
    """Returns the highest of each four neighbours, those at the border repeated."""
    padded = pad(logits[None], (1, 1, 1, 1), mode="replicate")[0]
    pairs = torch.maximum(padded[:, :-1], padded[:, 1:])
    return torch.maximum(pairs[..., :-1], pairs[..., 1:])


def _resized(logits: torch.Tensor, size: tuple[int, int], box: Box) -> torch.Tensor:
    """Brings logits to the video's size; returns what is inside a box."""
    return interpolate(logits[None], size, mode="bilinear", align_corners=False)[0][:, *box].contiguous()
