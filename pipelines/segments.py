"""Convert the logits of one frame to its segments at the size of the video."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, pad


# Classes resized to the size of the video at a time. All 71 of a 1080p frame at once would take 590 MB.
CLASSES_AT_ONCE = 8

# A class whose logit is this far below another one has less than 1e-7 of its probability, the rounding error of a float.
NEGLIGIBLE_LOGIT = 16.0

# Largest rounding error of a logit or a probability after resizing.
LOGIT_ROUNDING = 1e-3
PROBABILITY_ROUNDING = 1e-6

# Rows and columns of the video.
Box: TypeAlias = tuple[slice, slice]


def find_segments(
    logits: torch.Tensor,
    size: tuple[int, int],
    id2label: Mapping[int, str],
    threshold: float | None = None,
    minimum_area: float = 0.0,
) -> list[dict[str, Any]]:
    """Return the segments of one frame.

    Args:
        logits: (num_labels, network height, network width); sigmoid for one label, softmax for several.
        size: (height, width) of the video.
        id2label: Names of the classes; with several, class 0 is the background.
        threshold: Probability that a pixel must exceed, in [0, 1]; by default 0.5 for one label, 0 for several.
        minimum_area: Smallest segment as a fraction of the frame, in [0, 1].

    Returns:
        `{"score", "label", "mask"}` of each class present, highest score first. The mask is a PIL image of mode "L", 0 or
        255, at the size of the video; the score is the mean probability inside it, in [0, 1].

    Raises:
        ValueError: If a logit is NaN.
    """
    if logits.isnan().any():
        raise ValueError(
            "The network returned logits that are not numbers (NaN). In float16, large values overflow: use "
            "dtype=torch.bfloat16 or torch.float32. Otherwise check the weights."
        )
    is_binary = len(logits) == 1
    threshold = threshold if threshold is not None else 0.5 * is_binary
    gaps = _candidate_gaps(logits, threshold)
    if not gaps.any():
        return []
    box = _pixel_range(gaps.any(dim=1), size[0]), _pixel_range(gaps.any(dim=0), size[1])
    classes = _candidate_classes(logits, gaps)
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
    """Return an image of the size of the video, 0 or 255, from a mask of the box."""
    image = np.zeros(size, np.uint8)
    np.multiply(mask, np.uint8(255), out=image[box])
    return Image.fromarray(image)


def _candidate_gaps(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return where a segment is possible: a resized logit is between the lowest and highest of the four around it.

    Returns:
        (network height + 1, network width + 1), bool: the gaps before, between and after the pixels of the network.
    """
    if len(logits) == 1:
        return _highest_of_four(logits)[0].sigmoid() > threshold - PROBABILITY_ROUNDING
    margin = _highest_of_four(logits[1:]).amax(dim=0) + _highest_of_four(-logits[:1])[0]
    return margin > -LOGIT_ROUNDING


def _pixel_range(gaps: torch.Tensor, length: int) -> slice:
    """Return, along one axis, the pixels of the video from the first to the last gap with a segment.

    Args:
        gaps: (network pixels + 1,), bool.
        length: Number of pixels of the video.
    """
    # Source position of each pixel in `interpolate`; one more pixel on each side covers rounding.
    positions = (torch.arange(length, device=gaps.device) + 0.5) * ((len(gaps) - 1) / length) - 0.5
    inside = gaps[positions.floor().long() + 1].nonzero().flatten().tolist()
    return slice(max(0, inside[0] - 1), min(length, inside[-1] + 2)) if inside else slice(0)


def _most_probable_class(
    logits: torch.Tensor, classes: torch.Tensor, size: tuple[int, int], box: Box
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each pixel's most probable class and its probability inside a box, a few classes at a time.

    Args:
        logits: (num_labels, network height, network width); sigmoid for one label, softmax for several.
        classes: Class indices to consider, in ascending order.
        size: (height, width) of the video.
        box: The part of the video, (box height, box width).

    Returns:
        Class indices, int16 of shape (box height, box width), the first one in a tie; and probabilities in [0, 1] of the
        same shape.
    """
    if len(logits) == 1:
        probability = _resize(logits, size, box)[0].sigmoid()
        return torch.zeros_like(probability, dtype=torch.int16), probability
    groups = (_highest_class(logits, group, size, box) for group in classes.split(CLASSES_AT_ONCE))
    winner, best, total = next(groups)
    for highest_class, highest, group_total in groups:
        winner = torch.where(highest > best, highest_class, winner)
        best, total = torch.maximum(best, highest), torch.logaddexp(total, group_total)
    return winner, (best - total).exp()


def _highest_class(
    logits: torch.Tensor, classes: torch.Tensor, size: tuple[int, int], box: Box
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return each pixel's most probable class among some, its logit, and the logsumexp of these classes."""
    resized = _resize(logits[classes], size, box)
    highest, index = resized.max(dim=0)
    highest_class = classes.to(torch.int16)[index]  # a small type: each class is compared with every pixel later
    total = highest + resized.sub_(highest).exp_().sum(dim=0).log()  # without computing the maximum again
    return highest_class, highest, total


def _candidate_classes(logits: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
    """Return the background and the classes that can win a pixel in these gaps or affect its probability.

    A class whose highest of four logits is below the lowest of another class cannot be more probable than that class;
    far below, its probability is negligible.
    """
    behind = -_highest_of_four(-logits).amax(dim=0) - _highest_of_four(logits)
    relevant = behind[:, gaps].amin(dim=1) < NEGLIGIBLE_LOGIT
    relevant[0] = True
    return torch.nonzero(relevant).flatten()


def _highest_of_four(logits: torch.Tensor) -> torch.Tensor:
    """Return the highest of every four neighbors; the border is replicated."""
    padded = pad(logits[None], (1, 1, 1, 1), mode="replicate")[0]
    pairs = torch.maximum(padded[:, :-1], padded[:, 1:])
    return torch.maximum(pairs[..., :-1], pairs[..., 1:])


def _resize(logits: torch.Tensor, size: tuple[int, int], box: Box) -> torch.Tensor:
    """Resize logits to the video; return the part inside a box."""
    return interpolate(logits[None], size, mode="bilinear", align_corners=False)[0][:, *box].contiguous()
