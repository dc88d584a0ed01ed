# Copyright 2026 The pcmanet contributors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Losses of PCMANet as pure functions of logits and labels."""

from collections.abc import Sequence

import torch
from torch.nn import functional


def soft_iou_loss(logits: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Compute one minus the soft intersection over union of every frame.

    With I the sum of p t and S the sum of p + t over the valid pixels, the loss is `1 - (I + 1) / (S - I + 1)`.

    Args:
        logits: (frames, height, width), before the sigmoid.
        labels: (frames, height, width) in {0, 1}, float.
        valid: (frames, height, width), 1.0 where a pixel counts and 0.0 where not.

    Returns:
        (frames,), each in [0, 1).
    """
    probabilities = logits.sigmoid() * valid
    targets = labels * valid
    intersection = (probabilities * targets).sum((1, 2))
    total = (probabilities + targets).sum((1, 2))
    return 1 - (intersection + 1) / (total - intersection + 1)


def binary_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """Compute mean binary cross-entropy plus soft IoU loss of every frame.

    Args:
        logits: (frames, 1, height, width), before the sigmoid.
        labels: (frames, height, width), 0 silent, 1 sounding, `ignore_index` left out.
        ignore_index: Label of pixels that do not count.

    Returns:
        (frames,).
    """
    logits = logits.squeeze(1).float()
    valid = (labels != ignore_index).to(logits.dtype)
    targets = labels.to(logits.dtype) * valid
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none") * valid
    per_frame = cross_entropy.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
    return per_frame + soft_iou_loss(logits, targets, valid)


def semantic_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """Compute the per-pixel cross-entropy of every frame, averaged within the frame.

    Args:
        logits: (frames, num_labels, height, width), before the softmax.
        labels: (frames, height, width), class indexes, `ignore_index` left out.
        ignore_index: Label of pixels that do not count.

    Returns:
        (frames,).
    """
    cross_entropy = functional.cross_entropy(
        logits.float(), labels.long(), ignore_index=ignore_index, reduction="none"
    )
    num_valid = (labels != ignore_index).sum((1, 2)).clamp(min=1)
    return cross_entropy.sum((1, 2)) / num_valid


def validate_labels(labels: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """Refuse labels that no loss is defined for; binary cross-entropy would take any number as its target.

    On a GPU the check waits for nothing and fails as PyTorch's own do, later and for good; a compiled graph has none.

    Args:
        labels: Any shape.
        num_labels: Number of classes, 1 for binary labels.
        ignore_index: Label of pixels that do not count.

    Raises:
        ValueError: If a label is neither a class nor `ignore_index`.
    """
    if torch.compiler.is_compiling():
        return
    highest = max(num_labels, 2) - 1
    unexpected = (labels != ignore_index) & ((labels < 0) | (labels > highest) | (labels != labels.long()))
    expected = f"expected 0..{highest} or ignore_index {ignore_index}; a 0/255 mask is given as mask > 127"
    if labels.is_cuda:
        torch._assert_async(~unexpected.any(), f"`labels`: {expected}.")
    elif unexpected.any():
        raise ValueError(f"`labels` holds {labels[unexpected][0].item()}, {expected}.")


def deeply_supervised_loss(
    stage_logits: Sequence[torch.Tensor],
    labels: torch.Tensor,
    annotated: torch.Tensor,
    stage_weights: Sequence[float],
    ignore_index: int = 255,
) -> torch.Tensor:
    """Compute the weighted sum over the four supervised outputs of the loss averaged over the annotated frames.

    Args:
        stage_logits: Four tensors (batch, frames, num_labels, height, width), coarse to fine.
        labels: (batch, frames, height, width), binary or class indexes.
        annotated: (batch, frames) bool, the frames whose labels count. Without any the loss is 0.
        stage_weights: Four weights.
        ignore_index: Label of pixels that do not count.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: If a label that counts is neither a class nor `ignore_index`.
    """
    num_labels = stage_logits[0].shape[2]
    frame_loss = binary_loss if num_labels == 1 else semantic_loss
    num_annotated = annotated.sum().clamp(min=1)
    labels = labels[annotated]
    validate_labels(labels, num_labels, ignore_index)
    losses = [
        weight * frame_loss(logits[annotated], labels, ignore_index).sum() / num_annotated
        for logits, weight in zip(stage_logits, stage_weights, strict=True)
    ]
    return torch.stack(losses).sum()


__all__ = ["binary_loss", "deeply_supervised_loss", "semantic_loss", "soft_iou_loss", "validate_labels"]
