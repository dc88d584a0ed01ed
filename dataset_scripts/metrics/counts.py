"""Counts and ratios behind the measures of AVSBench: pure functions, no state.

Counting turns pixels into whole numbers per frame; the ratios turn such numbers into intersection over union, F score
and false-positive rate. The accumulators of `metrics.py` add the counts up. The protocol is AVSBench's (arXiv
2207.05042, and 2301.13190 for the semantic task).
"""

import torch
from torch import Tensor


THRESHOLD_COUNT = 255  # the F curve is taken at the thresholds k / 254, k = 0 .. 254
CODE_COUNT = THRESHOLD_COUNT + 1
BETA_SQUARED = 0.3  # weight of the recall against the precision in the F score
IGNORE_INDEX = 255  # label of pixels that nobody annotated or that do not count

# A probability is coded by how many thresholds it reaches: 1 (only 0.0) .. 255 (all, it is 1.0). All of 128 .. 255 lie
# above one half, except one half itself, which reaches the threshold 0.5 and yet is no foreground (the rule is a
# strict >). It takes the code that nothing else needs, 0.
ONE_HALF_CODE = 0
FIRST_FOREGROUND_CODE = THRESHOLD_COUNT // 2 + 1


def f_thresholds() -> Tensor:
    """Thresholds of the F curve, float32 (255,): k / 254, rounded as the official evaluation rounds them.

    Example:
        >>> f_thresholds()[[0, 127, 254]].tolist()
        [0.0, 0.5, 1.0]
    """
    return torch.linspace(0.0, 1.0, THRESHOLD_COUNT)


def quantize_probabilities(probabilities: Tensor) -> Tensor:
    """Code each foreground probability in one byte, without loss for any of the binary measures.

    Args:
        probabilities: float tensor of any shape, values in [0, 1].

    Returns:
        uint8 tensor of the same shape: the number of thresholds k / 254 that the probability reaches (1 .. 255), or 0
        for exactly one half.

    Raises:
        ValueError: a value is NaN or outside [0, 1].

    Example:
        >>> quantize_probabilities(torch.tensor([0.0, 0.4999, 0.5, 0.5001, 1.0])).tolist()
        [1, 127, 0, 128, 255]
    """
    probabilities = probabilities.float()
    if probabilities.numel() > 0:
        lowest, highest = (bound.item() for bound in probabilities.aminmax())
        if not (lowest >= 0.0 and highest <= 1.0):
            raise ValueError(
                f"probabilities run from {lowest} to {highest}, expected values in [0, 1] and no NaN: pass logits through a sigmoid, "
                "divide masks of 0 and 255 by 255"
            )
    # The nearest threshold and one comparison with it: what torch.bucketize(probabilities, thresholds, right=True)
    # finds by a binary search in ten times the time.
    nearest = (probabilities * (THRESHOLD_COUNT - 1)).round_().to(torch.int32)
    thresholds = f_thresholds().to(probabilities.device).index_select(0, nearest.flatten()).view_as(probabilities)
    codes = (nearest + (probabilities >= thresholds)).to(torch.uint8)
    return codes.masked_fill_(probabilities == 0.5, ONE_HALF_CODE)


def reduce_logits(logits: Tensor, num_labels: int) -> Tensor:
    """Keep of the logits what the measures need, one byte per pixel: the probability code (binary) or the class.

    Args:
        logits: (batch, frames, num_labels, height, width).
        num_labels: 1 is the binary task (sigmoid); else the argmax over classes is taken, the first of equals.

    Returns:
        (batch, frames, height, width): uint8 codes of `quantize_probabilities` for num_labels = 1, else class indices,
        uint8 as long as they fit.

    Raises:
        ValueError: another shape, or NaN.

    Example:
        >>> reduce_logits(torch.tensor([-20.0, 0.0, 20.0]).view(1, 1, 1, 1, 3), num_labels=1).flatten().tolist()
        [1, 0, 255]
        >>> reduce_logits(torch.tensor([0.0, 2.0, 2.0]).view(1, 1, 3, 1, 1), num_labels=3).flatten().tolist()
        [1]
    """
    if logits.ndim != 5 or logits.shape[2] != num_labels:
        raise ValueError(f"logits are {tuple(logits.shape)}, expected (batch, frames, {num_labels}, height, width)")
    if logits.isnan().any():
        raise ValueError("logits hold NaN: the model has diverged or its input is broken")
    if num_labels == 1:
        return quantize_probabilities(logits.squeeze(2).float().sigmoid())
    return logits.argmax(2).to(torch.uint8 if num_labels <= CODE_COUNT else torch.int32)


def code_histogram(codes: Tensor, targets: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Count, per frame, how many background and foreground pixels got each probability code.

    Args:
        codes: uint8 (frames, height, width), from `quantize_probabilities`.
        targets: integer (frames, height, width): 0 background, 1 foreground, `ignore_index` not counted.
        ignore_index: the label of pixels that are not counted.

    Returns:
        int64 (frames, 2, 256): pixels by target and code.

    Raises:
        ValueError: codes are not uint8.

    Example:
        >>> codes = torch.tensor([[[255, 1]]], dtype=torch.uint8)
        >>> histogram = code_histogram(codes, torch.tensor([[[1, 0]]]))
        >>> histogram[0, 1, 255].item(), histogram[0, 0, 1].item(), histogram.sum().item()
        (1, 1, 2)
    """
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes are {codes.dtype}, expected the uint8 codes of quantize_probabilities")
    # Ignored pixels go to a third row that is thrown away: cheaper than picking the others out.
    frames = targets.shape[0]
    rows = torch.where(targets == ignore_index, 2, targets).long()
    rows += 3 * torch.arange(frames, device=targets.device)[:, None, None]
    index = rows.mul_(CODE_COUNT).add_(codes)
    counts = torch.bincount(index.flatten(), minlength=frames * 3 * CODE_COUNT)
    return counts.view(frames, 3, CODE_COUNT)[:, :2]


def foreground_counts(histogram: Tensor) -> Tensor:
    """Pixels whose probability is above one half.

    Args:
        histogram: (..., 256) pixels by code.

    Returns:
        (...,) pixels predicted as foreground.
    """
    return histogram[..., FIRST_FOREGROUND_CODE:].sum(-1)


def threshold_counts(histogram: Tensor) -> Tensor:
    """Pixels at or above each of the 255 thresholds, by one reverse cumulative sum.

    Args:
        histogram: (..., 256) pixels by code.

    Returns:
        (..., 255): pixels whose probability reaches threshold k / 254, k = 0 .. 254.

    Example:
        >>> codes = quantize_probabilities(torch.tensor([[[0.0, 0.5, 1.0]]]))
        >>> threshold_counts(code_histogram(codes, torch.ones(1, 1, 3, dtype=torch.long)))[0, 1, [0, 1, 127, 128, 254]].tolist()
        [3, 2, 2, 1, 1]
    """
    by_reached = histogram[..., 1:].clone()
    by_reached[..., FIRST_FOREGROUND_CODE - 1] += histogram[..., ONE_HALF_CODE]
    return by_reached.flip(-1).cumsum(-1).flip(-1)


def class_counts(
    predictions: Tensor, targets: Tensor, num_labels: int, ignore_index: int = IGNORE_INDEX
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, per frame and class, the pixels of the intersection, of the prediction and of the target.

    Args:
        predictions: integer (frames, height, width), class indices in [0, num_labels).
        targets: integer (frames, height, width), class indices in [0, num_labels) or `ignore_index`.
        num_labels: number of classes, background included.
        ignore_index: the label of pixels that are not counted.

    Returns:
        Three int64 tensors (frames, num_labels): intersection, predicted, target.

    Raises:
        ValueError: predictions are no class indices.

    Example:
        >>> predictions, targets = torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 0], [1, 255]]])
        >>> [count.tolist() for count in class_counts(predictions, targets, num_labels=2)]
        [[[1, 1]], [[1, 2]], [[2, 1]]]
    """
    lowest, highest = (bound.item() for bound in predictions.aminmax())
    if predictions.is_floating_point() or lowest < 0 or highest >= num_labels:
        raise ValueError(
            f"predictions are {predictions.dtype} from {lowest} to {highest}, expected class indices from 0 to {num_labels - 1}"
        )
    # One more class collects what is not counted, and is dropped at the end.
    frames = targets.shape[0]
    offsets = (num_labels + 1) * torch.arange(frames, device=targets.device)[:, None, None]

    def count(classes: Tensor, counted: Tensor) -> Tensor:
        index = torch.where(counted, classes.long(), num_labels) + offsets
        counts = torch.bincount(index.flatten(), minlength=frames * (num_labels + 1))
        return counts.view(frames, num_labels + 1)[:, :num_labels]

    counted = targets != ignore_index
    return count(targets, counted & (predictions == targets)), count(predictions, counted), count(targets, counted)


def binary_iou(intersection: Tensor, predicted: Tensor, target: Tensor, pixels: Tensor) -> Tensor:
    """Intersection over union of a foreground mask; where the target is empty, the fraction of pixels left empty.

    Args:
        intersection: pixels in both masks, any shape.
        predicted: pixels of the predicted mask, same shape.
        target: pixels of the target mask, same shape.
        pixels: pixels counted in all, same shape.

    Returns:
        float64 of the same shape, in [0, 1]; 0 where no pixel was counted.

    Example:
        >>> counts = torch.tensor([[1, 0], [2, 1], [1, 0], [4, 4]])  # the second frame has an empty target
        >>> [round(value, 6) for value in binary_iou(*counts).tolist()]
        [0.5, 0.75]
    """
    intersection, predicted, target, pixels = (count.double() for count in (intersection, predicted, target, pixels))
    iou = intersection / (predicted + target - intersection + 1e-7)
    left_empty = (pixels - predicted) / pixels.clamp(min=1.0)
    return torch.where(target > 0, iou, left_empty)


def class_iou(intersection: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of classes; 0 for a class that is neither predicted nor in the target.

    Args:
        intersection: pixels of the class in both, any shape.
        predicted: pixels predicted as the class, same shape.
        target: pixels labelled as the class, same shape.

    Returns:
        float64 of the same shape, in [0, 1].

    Example:
        >>> class_iou(torch.tensor([1, 0]), torch.tensor([2, 0]), torch.tensor([3, 0])).tolist()
        [0.25, 0.0]
    """
    intersection, predicted, target = (count.double() for count in (intersection, predicted, target))
    return intersection / (predicted + target - intersection + torch.finfo(torch.float64).eps)


def f_score(intersection: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """F score with beta^2 = 0.3: 1.3 P R / (0.3 P + R) of precision P and recall R, 0 where it is not defined.

    Args:
        intersection: pixels in both masks, any shape.
        predicted: pixels of the predicted mask, same shape.
        target: pixels of the target mask, same shape.

    Returns:
        float64 of the same shape, in [0, 1].

    Example:
        >>> f_score(torch.tensor([1, 0]), torch.tensor([2, 0]), torch.tensor([1, 0])).tolist()  # P = 1/2, R = 1
        [0.5652173913043479, 0.0]
    """
    # P = I / p and R = I / t put in and simplified: no division by zero is left but the one of two empty masks, where
    # I is 0 too.
    denominator = predicted.double() + BETA_SQUARED * target.double()
    return (1.0 + BETA_SQUARED) * intersection.double() / denominator.clamp(min=BETA_SQUARED)


def harmonic_mean(first: float, second: float) -> float:
    """Harmonic mean of two scores in [0, 1]; 0 when either is 0.

    Example:
        >>> harmonic_mean(0.5, 1.0), harmonic_mean(0.0, 0.0)
        (0.6666666666666666, 0.0)
    """
    return 2.0 * first * second / (first + second) if first + second > 0.0 else 0.0
