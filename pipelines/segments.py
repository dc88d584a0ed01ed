"""Logits of one frame -> its segments at the video's size."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import interpolate


# Classes brought to the video's size at a time: all 71 of a 1080p frame at once would be 590 MB.
CLASSES_AT_ONCE = 8


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

    segments = []
    for class_id in class_ids[inside].unique().tolist():
        mask = inside & (class_ids == class_id)
        if mask.float().mean() >= minimum_area:
            segments.append(
                {
                    "score": probability[mask].mean().item(),
                    "label": id2label[class_id],
                    "mask": Image.fromarray(mask.to(torch.uint8).mul(255).numpy()),
                }
            )
    return sorted(segments, key=lambda segment: -segment["score"])


def _most_probable_class(logits: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds each pixel's most probable class and its probability at the video's size, a few classes at a time.

    Args:
        logits: (num_labels, network height, network width); one label means sigmoid, several mean softmax.
        size: (height, width) of the video.

    Returns:
        Class ids, int64 of shape (height, width), the first of equals; and probabilities in [0, 1], same shape.
    """
    winner = torch.zeros(size, dtype=torch.int64)
    best = torch.full(size, -math.inf)
    total = torch.full(size, -math.inf)
    for first in range(0, len(logits), CLASSES_AT_ONCE):
        some = interpolate(logits[None, first : first + CLASSES_AT_ONCE], size, mode="bilinear", align_corners=False)[
            0
        ]
        highest, index = some.max(dim=0)
        winner = torch.where(highest > best, first + index, winner)
        best = torch.maximum(best, highest)
        total = torch.logaddexp(total, some.logsumexp(dim=0))
    return winner, best.sigmoid() if len(logits) == 1 else (best - total).exp()
