"""Metrics of AVSBench (IoU and F score) and AVSBench-Robust (false-positive rate on negative audio).

Three layers: pure functions that count pixels, pure functions that turn counts into ratios, and accumulators that keep one
row of sums per clip. All three averaging protocols come from the same rows.
"""

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Self, get_args

import torch
from torch import Tensor


THRESHOLD_COUNT = 255  # the F curve is computed at the thresholds k / 254, k = 0 .. 254
CODE_COUNT = THRESHOLD_COUNT + 1
BETA_SQUARED = 0.3  # weight of recall relative to precision in the F score
IGNORE_INDEX = 255  # label of pixels that are not annotated or not scored

# A probability is encoded as the number of thresholds it reaches: 1 (only 0.0) .. 255 (all, it is 1.0). The codes 128 .. 255
# are all above one half, except for exactly one half, which reaches the threshold 0.5 but is not foreground (the rule is a
# strict >). It gets the only unused code, 0.
ONE_HALF_CODE = 0
FIRST_FOREGROUND_CODE = THRESHOLD_COUNT // 2 + 1


def f_thresholds() -> Tensor:
    """Return the thresholds of the F curve, float32 (255,): k / 254, rounded as in the official evaluation.

    Example:
        >>> f_thresholds()[[0, 127, 254]].tolist()
        [0.0, 0.5, 1.0]
    """
    return torch.linspace(0.0, 1.0, THRESHOLD_COUNT, device="cpu")


def quantize_probabilities(probabilities: Tensor) -> Tensor:
    """Encode each foreground probability as one byte, without loss for the binary metrics.

    Args:
        probabilities: Float tensor of any shape, values in [0, 1].

    Returns:
        uint8 tensor of the same shape: the number of thresholds k / 254 that the probability reaches (1 .. 255), or 0
        for exactly one half.

    Raises:
        ValueError: If a value is NaN or outside [0, 1].

    Example:
        >>> quantize_probabilities(torch.tensor([0.0, 0.4999, 0.5, 0.5001, 1.0])).tolist()
        [1, 127, 0, 128, 255]
    """
    probabilities = probabilities.float()
    if probabilities.numel() > 0:
        lowest, highest = (bound.item() for bound in probabilities.aminmax())
        if not (lowest >= 0.0 and highest <= 1.0):
            raise ValueError(
                f"Probabilities range from {lowest} to {highest}, expected values in [0, 1] without NaN. Apply a sigmoid "
                "to logits, and divide masks of 0 and 255 by 255."
            )
    # The nearest threshold and one comparison with it. This equals torch.bucketize(probabilities, thresholds, right=True),
    # whose binary search takes ten times as long.
    nearest = (probabilities * (THRESHOLD_COUNT - 1)).round_().to(torch.int32)
    thresholds = f_thresholds().to(probabilities.device).index_select(0, nearest.flatten()).view_as(probabilities)
    codes = (nearest + (probabilities >= thresholds)).to(torch.uint8)
    return codes.masked_fill_(probabilities == 0.5, ONE_HALF_CODE)


def reduce_logits(logits: Tensor, num_labels: int) -> Tensor:
    """Reduce logits to what the metrics need, one byte per pixel: the probability code (binary) or the class.

    Args:
        logits: (batch, frames, num_labels, height, width).
        num_labels: 1 is the binary task (sigmoid). Otherwise the argmax over classes is taken; the lowest index wins ties.

    Returns:
        (batch, frames, height, width): uint8 codes of `quantize_probabilities` for num_labels = 1, otherwise class
        indices, uint8 if they fit and int32 if not.

    Raises:
        ValueError: If the shape is different or a logit is NaN.

    Example:
        >>> reduce_logits(torch.tensor([-20.0, 0.0, 20.0]).view(1, 1, 1, 1, 3), num_labels=1).flatten().tolist()
        [1, 0, 255]
        >>> reduce_logits(torch.tensor([0.0, 2.0, 2.0]).view(1, 1, 3, 1, 1), num_labels=3).flatten().tolist()
        [1]
    """
    if logits.ndim != 5 or logits.shape[2] != num_labels:
        raise ValueError(f"Expected logits (batch, frames, {num_labels}, height, width), got {tuple(logits.shape)}.")
    if logits.isnan().any():
        raise ValueError("The logits contain NaN. Check the inputs of the model, and whether training diverged.")
    if num_labels == 1:
        return quantize_probabilities(logits.squeeze(2).float().sigmoid())
    return logits.argmax(2).to(torch.uint8 if num_labels <= CODE_COUNT else torch.int32)


def code_histogram(codes: Tensor, targets: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Count the background and the foreground pixels of each frame by probability code.

    Args:
        codes: uint8 (frames, height, width), from `quantize_probabilities`.
        targets: Integer (frames, height, width): 0 background, 1 foreground, `ignore_index` not counted.
        ignore_index: Label of pixels that are not counted.

    Returns:
        int64 (frames, 2, 256): pixels by target and code.

    Raises:
        ValueError: If the codes are not uint8.

    Example:
        >>> codes = torch.tensor([[[255, 1]]], dtype=torch.uint8)
        >>> histogram = code_histogram(codes, torch.tensor([[[1, 0]]]))
        >>> histogram[0, 1, 255].item(), histogram[0, 0, 1].item(), histogram.sum().item()
        (1, 1, 2)
    """
    if codes.dtype != torch.uint8:
        raise ValueError(f"Expected the uint8 codes of quantize_probabilities, got {codes.dtype}.")
    # Ignored pixels go to a third row that is dropped: cheaper than selecting the others.
    frames = targets.shape[0]
    rows = torch.where(targets == ignore_index, 2, targets).long()
    rows += 3 * torch.arange(frames, device=targets.device)[:, None, None]
    index = rows.mul_(CODE_COUNT).add_(codes)
    counts = torch.bincount(index.flatten(), minlength=frames * 3 * CODE_COUNT)
    return counts.view(frames, 3, CODE_COUNT)[:, :2]


def foreground_counts(histogram: Tensor) -> Tensor:
    """Count the pixels whose probability is above one half.

    Args:
        histogram: (..., 256) pixels by code.

    Returns:
        (...,) pixels predicted as foreground.
    """
    return histogram[..., FIRST_FOREGROUND_CODE:].sum(-1)


def threshold_counts(histogram: Tensor) -> Tensor:
    """Count the pixels at or above each of the 255 thresholds, by one reverse cumulative sum.

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
    """Count the pixels of the intersection, the prediction and the target, by frame and class.

    Args:
        predictions: Integer (frames, height, width), class indices in [0, num_labels).
        targets: Integer (frames, height, width), class indices in [0, num_labels) or `ignore_index`.
        num_labels: Number of classes, including background.
        ignore_index: Label of pixels that are not counted.

    Returns:
        Three int64 tensors (frames, num_labels): intersection, predicted, target.

    Raises:
        ValueError: If the predictions are not class indices.

    Example:
        >>> predictions, targets = torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 0], [1, 255]]])
        >>> [count.tolist() for count in class_counts(predictions, targets, num_labels=2)]
        [[[1, 1]], [[1, 2]], [[2, 1]]]
    """
    lowest, highest = (bound.item() for bound in predictions.aminmax())
    if predictions.is_floating_point() or lowest < 0 or highest >= num_labels:
        raise ValueError(
            f"Expected predictions to be class indices from 0 to {num_labels - 1}, got {predictions.dtype} from {lowest} to {highest}."
        )
    # An additional class collects what is not counted; it is dropped at the end.
    frames = targets.shape[0]
    offsets = (num_labels + 1) * torch.arange(frames, device=targets.device)[:, None, None]

    def count(classes: Tensor, counted: Tensor) -> Tensor:
        index = torch.where(counted, classes.long(), num_labels) + offsets
        counts = torch.bincount(index.flatten(), minlength=frames * (num_labels + 1))
        return counts.view(frames, num_labels + 1)[:, :num_labels]

    counted = targets != ignore_index
    return count(targets, counted & (predictions == targets)), count(predictions, counted), count(targets, counted)


def binary_iou(intersection: Tensor, predicted: Tensor, target: Tensor, pixels: Tensor) -> Tensor:
    """Compute the IoU of foreground masks; for an empty target, the fraction of pixels predicted as background.

    Args:
        intersection: Pixels in both masks, any shape.
        predicted: Pixels of the predicted mask, same shape.
        target: Pixels of the target mask, same shape.
        pixels: Total number of counted pixels, same shape.

    Returns:
        float64 of the same shape, in [0, 1]; 0 where no pixel was counted.

    Example:
        >>> counts = torch.tensor([[1, 0], [2, 1], [1, 0], [4, 4]])  # the second frame has an empty target
        >>> [round(value, 6) for value in binary_iou(*counts).tolist()]
        [0.5, 0.75]
    """
    intersection, predicted, target, pixels = (count.double() for count in (intersection, predicted, target, pixels))
    iou = intersection / (predicted + target - intersection + 1e-7)
    background = (pixels - predicted) / pixels.clamp(min=1.0)
    return torch.where(target > 0, iou, background)


def class_iou(intersection: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """Compute the IoU of classes; 0 for a class that is neither predicted nor in the target.

    Args:
        intersection: Pixels of the class in both, any shape.
        predicted: Pixels predicted as the class, same shape.
        target: Pixels labeled as the class, same shape.

    Returns:
        float64 of the same shape, in [0, 1].

    Example:
        >>> class_iou(torch.tensor([1, 0]), torch.tensor([2, 0]), torch.tensor([3, 0])).tolist()
        [0.25, 0.0]
    """
    intersection, predicted, target = (count.double() for count in (intersection, predicted, target))
    return intersection / (predicted + target - intersection + torch.finfo(torch.float64).eps)


def f_score(intersection: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """Compute the F score with beta^2 = 0.3: 1.3 P R / (0.3 P + R) of precision P and recall R, 0 where undefined.

    Args:
        intersection: Pixels in both masks, any shape.
        predicted: Pixels of the predicted mask, same shape.
        target: Pixels of the target mask, same shape.

    Returns:
        float64 of the same shape, in [0, 1].

    Example:
        >>> f_score(torch.tensor([1, 0]), torch.tensor([2, 0]), torch.tensor([1, 0])).tolist()  # P = 1/2, R = 1
        [0.5652173913043479, 0.0]
    """
    # P = I / p and R = I / t, inserted and simplified. The only remaining division by zero is that of two empty masks,
    # where I is 0 too.
    denominator = predicted.double() + BETA_SQUARED * target.double()
    return (1.0 + BETA_SQUARED) * intersection.double() / denominator.clamp(min=BETA_SQUARED)


def exact_sum(rows: Tensor) -> Tensor:
    """Sum the columns of (rows, width) with exact rounding: the result does not depend on the order of the rows.

    Example:
        >>> exact_sum(torch.tensor([[1e16], [1.0], [-1e16]], dtype=torch.float64)).item()
        1.0
    """
    return rows.new_tensor([math.fsum(column) for column in rows.T.tolist()])


def _exact_mean(values: Tensor) -> float:
    """Compute the mean of all values from an exactly rounded sum."""
    return math.fsum(values.flatten().tolist()) / values.numel()


def _harmonic_mean(first: float, second: float) -> float:
    """Compute the harmonic mean of two scores in [0, 1]; 0 if either is 0."""
    return 2.0 * first * second / (first + second) if first + second > 0.0 else 0.0


Protocol = Literal["official", "batch", "dataset"]
Table = dict[str, Tensor]  # column name -> float64 (rows, width of the column)


def _check_protocol(protocol: Protocol) -> Protocol:
    """Return the protocol; raise ValueError if it is unknown."""
    if protocol not in get_args(Protocol):
        raise ValueError(f"Expected protocol to be one of {get_args(Protocol)}, got {protocol!r}.")
    return protocol


class ClipMetrics(ABC):
    """Base class of the accumulators: select the pixels to count, keep one row per clip, merge and resume.

    Args:
        num_labels: Channels of the logits: 1 is the binary task (labels 0/1), more are classes with background as
            class 0.
        protocol: How `compute` averages by default: `"official"` (AVSBench's evaluation with one clip per batch),
            `"batch"` (the same per call of `update`) or `"dataset"` (pixels are summed before the ratio).
        ignore_index: Label of pixels that are not counted.
        score_padding: Also score the padded frames of short clips, against an empty (background) target, as AVSBench's
            own semantic evaluation does. The number of padded frames is that of the batch, so pad all clips to the same
            length (AVSBench: 10 frames).

    Raises:
        ValueError: If the protocol is unknown, or `ignore_index` is a class.
    """

    label_columns: tuple[
        str, ...
    ]  # the columns that depend on the labels alone: a repeated clip has equal values there

    def __init__(
        self,
        num_labels: int,
        protocol: Protocol = "official",
        *,
        ignore_index: int = IGNORE_INDEX,
        score_padding: bool = False,
    ):
        if num_labels < 1 or 0 <= ignore_index < max(num_labels, 2):
            raise ValueError(
                f"Expected num_labels >= 1 and an ignore_index that is not a class, got num_labels {num_labels} and ignore_index {ignore_index}."
            )
        self.num_labels = num_labels
        self.protocol: Protocol = _check_protocol(protocol)
        self.ignore_index = ignore_index
        self.score_padding = score_padding
        self.reset()

    @property
    @abstractmethod
    def columns(self) -> dict[str, int]:
        """Return the column names of a row with their widths. A row holds sums over the frames of a clip."""

    @abstractmethod
    def _score_frames(self, predictions: Tensor, targets: Tensor) -> Table:
        """Compute the columns of each frame, on the CPU.

        Args:
            predictions: (frames, height, width), from `reduce`.
            targets: int64 (frames, height, width), `ignore_index` where nothing is scored.
        """

    @abstractmethod
    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        """Compute the scores from the summed rows of each group: the clips, the batches, or one row for the dataset."""

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        annotated_frames: Tensor | None = None,
        clip_indices: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Count a batch of clips.

        Args:
            logits: (batch, frames, num_labels, height, width) at the size of the labels.
            labels: Integer (batch, frames, height, width): 0/1 for binary metrics, class indices for semantic metrics,
                `ignore_index` for pixels that are not counted.
            frame_mask: bool (batch, frames), False = padding; None = all frames are real.
            annotated_frames: bool (batch, frames), which frames are annotated; None = all.
            clip_indices: Position of each clip in the dataset. Required to merge processes or to resume: a repeated
                clip (samplers repeat clips to fill the last batch) is counted once. If None, clips are numbered in
                order of arrival.

        Raises:
            ValueError: If shapes do not match, a logit is NaN, a label is out of range, or a clip index is repeated with
                different labels.
        """
        self.append(self.count(logits, labels, frame_mask, annotated_frames), clip_indices)

    def update_predictions(
        self,
        predictions: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        annotated_frames: Tensor | None = None,
        clip_indices: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Count a batch whose logits were already reduced by `reduce`. Other arguments and errors as for `update`.

        `predictions` has the shape (batch, frames, height, width). For binary metrics it holds the codes of
        `quantize_probabilities` (a 0/1 mask is a probability: encode it too), for semantic metrics class indices.
        """
        self.append(self.count_predictions(predictions, labels, frame_mask, annotated_frames), clip_indices)

    def reduce(self, logits: Tensor) -> Tensor:
        """Reduce logits to one byte per pixel without loss for these metrics: see `reduce_logits`."""
        return reduce_logits(logits, self.num_labels)

    def count(
        self,
        logits: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        annotated_frames: Tensor | None = None,
    ) -> Tensor:
        """Return the rows of a batch, float64 (batch, row width), on the CPU. The state does not change.

        Arguments and errors as for `update`.
        """
        return self.count_predictions(self.reduce(logits), labels, frame_mask, annotated_frames)

    def count_predictions(
        self,
        predictions: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        annotated_frames: Tensor | None = None,
    ) -> Tensor:
        """Return the rows of a batch that was reduced by `reduce`, float64 (batch, row width), on the CPU.

        The state does not change. Arguments and errors as for `update_predictions`. An empty batch, which a process
        receives if there are more processes than clips, has no rows.
        """
        if predictions.shape != labels.shape or labels.ndim != 4 or 0 in labels.shape[1:]:
            raise ValueError(
                "Expected predictions and labels of the same size (batch, frames, height, width), got predictions "
                f"{tuple(predictions.shape)} and labels {tuple(labels.shape)}. Resize the logits to the labels first."
            )
        targets = self._targets(labels.to(predictions.device), frame_mask, annotated_frames)
        if not len(labels):
            return torch.zeros(0, self._row_width, dtype=torch.float64, device="cpu")
        table = self._score_frames(predictions.flatten(0, 1), targets.flatten(0, 1))
        rows = torch.cat([table[name].double().view(-1, width) for name, width in self.columns.items()], dim=1)
        # Frame by frame, because the rounding of a library sum may depend on the padding: zeros added one by one change
        # nothing.
        return functools.reduce(torch.add, rows.view(*labels.shape[:2], -1).unbind(1))

    def append(self, rows: Tensor, clip_indices: Sequence[int] | Tensor | None = None) -> None:
        """Add the rows that `count` returned for a batch.

        Args:
            rows: float64 (batch, row width).
            clip_indices: As for `update`.

        Raises:
            ValueError: If clips with and without an index are mixed, or an index is repeated with different labels.
        """
        numbered = clip_indices is not None
        keys = [int(index) for index in clip_indices] if clip_indices is not None else self._next_keys(len(rows))
        if len(keys) != len(rows):
            raise ValueError(f"Expected one clip index per clip, got {len(keys)} indices for {len(rows)} clips.")
        self._add_rows(keys, rows, [self._next_batch()] * len(rows), numbered=numbered)

    def merge(self, other: Self) -> None:
        """Add the clips of another accumulator.

        Raises:
            ValueError: If the other accumulator is of another type or number of classes, clips with and without an index
                are mixed, or an index is repeated with different labels.
        """
        self._add_state(other.state_dict())

    def gather(self) -> Self:
        """Return a new accumulator with the clips of all processes of `torch.distributed`, the same on each process.

        In a single process, it is a copy. Errors as for `merge`: pass `clip_indices` to `update`, because samplers
        repeat clips to fill the last batch.
        """
        states: list[dict[str, Tensor]] = [self.state_dict()]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = states * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, self.state_dict())
        gathered = copy.copy(self)
        gathered.reset()
        for state in states:
            gathered._add_state(state)
        return gathered

    def compute(self, protocol: Protocol | None = None) -> dict[str, float]:
        """Compute the scores of all clips, by name.

        Args:
            protocol: If not None, replaces the protocol of the accumulator.

        Raises:
            ValueError: If nothing was counted yet, or the protocol is unknown.
        """
        protocol = self.protocol if protocol is None else _check_protocol(protocol)
        return self._summarize(self._groups(protocol), protocol)

    def per_clip(self) -> dict[int, dict[str, float]]:
        """Compute the scores of each individual scored clip (official protocol), by clip index."""
        table = self._split(self.state_dict()["rows"])
        clips = {
            key: {name: column[i : i + 1] for name, column in table.items()}
            for i, key in enumerate(sorted(self._rows))
        }
        return {key: self._summarize(clip, "official") for key, clip in clips.items() if clip["frames"] > 0}

    def reset(self) -> None:
        """Remove all clips."""
        self._rows: dict[int, Tensor] = {}
        self._batches: dict[int, int] = {}
        self._numbered = False

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._rows)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state: clip_indices and batch_indices (clips,), rows (clips, row width), numbered ()."""
        keys = sorted(self._rows)
        rows = [self._rows[key] for key in keys]
        batches = [self._batches[key] for key in keys]
        empty = torch.zeros(0, self._row_width, dtype=torch.float64, device="cpu")
        return {
            "clip_indices": torch.tensor(keys, dtype=torch.long, device="cpu"),
            "batch_indices": torch.tensor(batches, dtype=torch.long, device="cpu"),
            "rows": torch.stack(rows) if rows else empty,
            "numbered": torch.tensor(self._numbered, device="cpu"),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the state with one from `state_dict`, to resume an evaluation. Errors as for `merge`."""
        self.reset()
        self._add_state(state)

    def _targets(self, labels: Tensor, frame_mask: Tensor | None, annotated_frames: Tensor | None) -> Tensor:
        """Return the labels with `ignore_index` wherever nothing is scored."""
        if labels.is_floating_point():
            raise ValueError(
                f"Expected integer labels (class indices, or 0/1 for a binary mask), got {labels.dtype}. Convert them with .long()."
            )
        real, annotated = (_frame_mask_or_true(mask, labels) for mask in (frame_mask, annotated_frames))
        scored = annotated & real
        if self.score_padding:
            labels = torch.where(real[..., None, None], labels, 0)
            scored = annotated | ~real
        targets = torch.where(scored[..., None, None], labels.long(), self.ignore_index)
        classes = max(self.num_labels, 2)
        unexpected = targets[(targets != self.ignore_index) & ((targets < 0) | (targets >= classes))]
        if unexpected.numel() > 0:
            raise ValueError(
                f"Expected labels from 0 to {classes - 1}, or {self.ignore_index} for pixels that are not counted, got {unexpected[0].item()}."
            )
        return targets

    @property
    def _row_width(self) -> int:
        return sum(self.columns.values())

    def _next_keys(self, count: int) -> list[int]:
        first = max(self._rows, default=-1) + 1
        return list(range(first, first + count))

    def _next_batch(self) -> int:
        return max(self._batches.values(), default=-1) + 1

    def _add_rows(self, keys: Sequence[int], rows: Tensor, batches: Sequence[int], *, numbered: bool) -> None:
        if self._rows and numbered != self._numbered:
            raise ValueError(
                "Clips with and without clip_indices are mixed. Pass clip_indices in all updates or in none."
            )
        self._numbered = numbered
        for key, row, batch in zip(keys, rows, batches, strict=True):
            if key not in self._rows:
                self._rows[key], self._batches[key] = row, batch
                continue
            known, repeated = self._split(self._rows[key]), self._split(row)
            if not all(torch.equal(known[name], repeated[name]) for name in self.label_columns):
                raise ValueError(
                    f"Clip index {key} is repeated with different labels. Number the clips over the complete dataset, and call reset() "
                    "between evaluations."
                )

    def _add_state(self, state: dict[str, Tensor]) -> None:
        if state["rows"].shape[1] != self._row_width:
            raise ValueError(
                f"Expected rows of width {self._row_width}, got {state['rows'].shape[1]}: the other accumulator has another type or "
                "number of classes."
            )
        if len(state["rows"]) == 0:
            return
        numbered = bool(state["numbered"])
        keys = state["clip_indices"].tolist() if numbered else self._next_keys(len(state["rows"]))
        first_batch = self._next_batch()
        batches = [first_batch + batch for batch in state["batch_indices"].tolist()]
        self._add_rows(keys, state["rows"], batches, numbered=numbered)

    def _split(self, rows: Tensor) -> Table:
        return dict(zip(self.columns, rows.split(list(self.columns.values()), dim=-1), strict=True))

    def _groups(self, protocol: Protocol) -> Table:
        """Sum the rows over the groups of a protocol. Clips without a scored frame are skipped."""
        state = self.state_dict()
        rows = state["rows"]
        scored = self._split(rows)["frames"][:, 0] > 0
        if not scored.any():
            if len(self):
                raise ValueError(f"None of the {len(self)} clips has an annotated frame. Add masks to the data.")
            raise ValueError("No clip was counted yet. Call update before compute.")
        if protocol == "dataset":
            return self._split(exact_sum(rows[scored])[None])
        if protocol == "official":
            return self._split(rows[scored])
        batches, members = state["batch_indices"][scored].unique(return_inverse=True)
        return self._split(rows.new_zeros(len(batches), rows.shape[1]).index_add_(0, members, rows[scored]))


def _frame_mask_or_true(mask: Tensor | None, labels: Tensor) -> Tensor:
    """Return a checked frame mask, bool (batch, frames); all True if it is None."""
    if mask is None:
        return torch.ones(labels.shape[:2], dtype=torch.bool, device=labels.device)
    if mask.shape != labels.shape[:2]:
        raise ValueError(f"Expected masks (batch, frames) = {tuple(labels.shape[:2])}, got {tuple(mask.shape)}.")
    return mask.to(labels.device, torch.bool)


class BinaryMetrics(ClipMetrics):
    """IoU ("J") and F score of foreground masks: the metrics of AVSBench's S4 and MS3.

    A pixel is foreground if sigmoid(logit) > 0.5. A frame with an empty target scores the fraction of pixels predicted
    as background in IoU and is skipped in F. F is the maximum over 255 thresholds of the mean curve of a group, so it
    depends on the grouping. `compute` returns `miou` and `f_score` in [0, 1], the number of scored `frames`, and the
    number of averaged `groups`.

    Args:
        protocol: As for [`ClipMetrics`].
        ignore_index: As for [`ClipMetrics`].
        score_padding: As for [`ClipMetrics`].

    Example:
        >>> metrics = BinaryMetrics()
        >>> logits = torch.tensor([[4.0, 4.0], [-4.0, -4.0]]).view(1, 1, 1, 2, 2)
        >>> metrics.update(logits, torch.tensor([[1, 0], [0, 0]]).view(1, 1, 2, 2))
        >>> {name: round(value, 4) for name, value in metrics.compute().items()}
        {'miou': 0.5, 'f_score': 0.5652, 'frames': 1.0, 'groups': 1.0}
    """

    label_columns = ("frames", "labeled_frames", "target")

    def __init__(
        self, protocol: Protocol = "official", *, ignore_index: int = IGNORE_INDEX, score_padding: bool = False
    ):
        super().__init__(1, protocol, ignore_index=ignore_index, score_padding=score_padding)

    @property
    def columns(self) -> dict[str, int]:
        """Return the column names of a row with their widths. A row holds sums over the frames of a clip."""
        scalars = ("frames", "pixels", "iou", "labeled_frames", "intersection", "predicted", "target")
        curves = ("curve", "curve_intersection", "curve_predicted")
        return {**dict.fromkeys(scalars, 1), **dict.fromkeys(curves, THRESHOLD_COUNT)}

    def _score_frames(self, predictions: Tensor, targets: Tensor) -> Table:
        histogram = code_histogram(predictions, targets, self.ignore_index).cpu()
        pixels, target = histogram.sum((1, 2)), histogram[:, 1].sum(1)
        above_half, reached = foreground_counts(histogram), threshold_counts(histogram)
        intersection, predicted = above_half[:, 1], above_half.sum(1)
        curve = f_score(reached[:, 1], reached.sum(1), target[:, None])
        return {
            "frames": pixels > 0,
            "pixels": pixels,
            "iou": binary_iou(intersection, predicted, target, pixels),
            "labeled_frames": target > 0,
            "intersection": intersection,
            "predicted": predicted,
            "target": target,
            "curve": curve,  # zero for an empty target, so such frames add nothing to the sum
            "curve_intersection": reached[:, 1],
            "curve_predicted": reached.sum(1),
        }

    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        if protocol == "dataset":
            iou = binary_iou(*(groups[name] for name in ("intersection", "predicted", "target", "pixels")))
            curve = f_score(groups["curve_intersection"], groups["curve_predicted"], groups["target"])
        else:
            iou = groups["iou"] / groups["frames"]
            curve = groups["curve"] / groups["labeled_frames"].clamp(min=1.0)
        return {
            "miou": _exact_mean(iou),
            "f_score": _exact_mean(curve.amax(1)),
            "frames": float(groups["frames"].sum()),
            "groups": float(len(iou)),
        }


class SemanticMetrics(ClipMetrics):
    """Mean IoU and F score over classes: the metrics of AVSBench-semantic (AVSS).

    The class of a pixel is the argmax; the lowest index wins ties. `"official"`: per frame and class, then the mean over
    the frames that contain the class in the prediction or the target, then the mean over all classes (a class that never
    occurs scores 0). `"batch"`: the same within each call of `update`, then per class the mean over the calls that
    contain it. `"dataset"`: ratios of pixels summed over the dataset.

    `compute` returns `miou` and `f_score` over all classes, `..._no_background` over classes 1 and up,
    `..._seen_classes` over the classes that occur, and the numbers of `classes_seen` and scored `frames`.

    Args:
        num_labels: Number of classes including background, which is class 0 (AVSS: 71).
        protocol: As for [`ClipMetrics`].
        ignore_index: As for [`ClipMetrics`].
        score_padding: As for [`ClipMetrics`].
        report_published_no_background: Also return `..._published_no_background`: the official script slices `[:-1]`,
            which keeps the background and drops the last class (AVSS: woman). This is an error, but published tables
            contain it.

    Raises:
        ValueError: If there are fewer than two classes, the protocol is unknown, or `ignore_index` is a class.

    Example:
        >>> metrics = SemanticMetrics(num_labels=3)
        >>> logits = torch.nn.functional.one_hot(torch.tensor([[0, 1], [1, 1]]), 3).permute(2, 0, 1).float()
        >>> metrics.update(logits[None, None], torch.tensor([[0, 0], [1, 1]])[None, None])
        >>> {name: round(value, 4) for name, value in metrics.compute().items() if name.startswith("miou")}
        {'miou': 0.3889, 'miou_no_background': 0.3333, 'miou_seen_classes': 0.5833}
    """

    label_columns = ("frames", "target")

    def __init__(
        self,
        num_labels: int,
        protocol: Protocol = "official",
        *,
        ignore_index: int = IGNORE_INDEX,
        score_padding: bool = False,
        report_published_no_background: bool = False,
    ):
        if num_labels < 2:
            raise ValueError(f"Expected num_labels >= 2, got {num_labels}. Use BinaryMetrics for the binary task.")
        super().__init__(num_labels, protocol, ignore_index=ignore_index, score_padding=score_padding)
        self.report_published_no_background = report_published_no_background

    @property
    def columns(self) -> dict[str, int]:
        """Return the column names of a row with their widths. A row holds sums over the frames of a clip."""
        by_class = ("iou", "f_score", "seen_frames", "intersection", "predicted", "target")
        return {"frames": 1, **dict.fromkeys(by_class, self.num_labels)}

    def per_class(self, protocol: Protocol | None = None) -> Table:
        """Compute the scores of each class, float64 (num_labels,): `iou`, `f_score` (0 if not seen) and `seen` (0 or 1).

        Args:
            protocol: If not None, replaces the protocol of the accumulator.

        Raises:
            ValueError: If nothing was counted yet, or the protocol is unknown.
        """
        protocol = self.protocol if protocol is None else _check_protocol(protocol)
        return self._class_scores(self._groups(protocol), protocol)

    def _score_frames(self, predictions: Tensor, targets: Tensor) -> Table:
        counts = class_counts(predictions, targets, self.num_labels, self.ignore_index)
        intersection, predicted, target = (count.cpu() for count in counts)
        return {
            "frames": target.sum(1) > 0,
            "iou": class_iou(intersection, predicted, target),
            "f_score": f_score(intersection, predicted, target),
            "seen_frames": predicted + target > 0,
            "intersection": intersection,
            "predicted": predicted,
            "target": target,
        }

    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        scores = self._class_scores(groups, protocol)
        slices = {"": slice(None), "_no_background": slice(1, None)}
        if self.report_published_no_background:
            slices["_published_no_background"] = slice(None, -1)
        means = {}
        for name, column in (("miou", scores["iou"]), ("f_score", scores["f_score"])):
            means |= {f"{name}{suffix}": _exact_mean(column[classes]) for suffix, classes in slices.items()}
            means[f"{name}_seen_classes"] = _exact_mean(column[scores["seen"] > 0])
        return means | {"classes_seen": float(scores["seen"].sum()), "frames": float(groups["frames"].sum())}

    def _class_scores(self, groups: Table, protocol: Protocol) -> Table:
        if protocol == "dataset":
            intersection, predicted, target = (groups[name][0] for name in ("intersection", "predicted", "target"))
            return {
                "iou": class_iou(intersection, predicted, target),
                "f_score": f_score(intersection, predicted, target),
                "seen": (predicted + target > 0).double(),
            }
        if protocol == "official":
            groups = {name: exact_sum(column)[None] for name, column in groups.items()}
        # The mean over the frames of each group that contain the class, then over the groups that contain it.
        seen = (groups["seen_frames"] > 0).double()
        frames, group_counts = groups["seen_frames"].clamp(min=1.0), seen.sum(0).clamp(min=1.0)
        scores = {name: exact_sum(groups[name] / frames) / group_counts for name in ("iou", "f_score")}
        return scores | {"seen": seen.amax(0)}


def build_metrics(num_labels: int) -> ClipMetrics:
    """Return the metrics of a network by its number of labels: binary for one, otherwise semantic."""
    return BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels)


class FalsePositiveMetrics(ClipMetrics):
    """False-positive rate on negative audio: the fraction of pixels predicted as foreground while no visible object sounds.

    `"official"` and `"batch"` average over the frames of each group, then over the groups; `"dataset"` divides the
    summed pixels. `compute` returns `false_positive_rate` in [0, 1] and the number of scored `frames`. Foreground is a
    probability above one half, or any class except 0. The labels are only used for `ignore_index`: the correct mask is
    empty.

    Args:
        num_labels: As for [`ClipMetrics`].
        protocol: As for [`ClipMetrics`].
        ignore_index: As for [`ClipMetrics`].
        score_padding: As for [`ClipMetrics`].

    Example:
        >>> metrics = FalsePositiveMetrics(num_labels=1)
        >>> metrics.update(torch.tensor([4.0, -4.0, -4.0, -4.0]).view(1, 1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.long))
        >>> metrics.compute()
        {'false_positive_rate': 0.25, 'frames': 1.0}
    """

    label_columns = ("frames", "pixels")

    @property
    def columns(self) -> dict[str, int]:
        """Return the column names of a row with their widths. A row holds sums over the frames of a clip."""
        return {"frames": 1, "pixels": 1, "rate": 1, "false_positives": 1}

    def _score_frames(self, predictions: Tensor, targets: Tensor) -> Table:
        counted = targets != self.ignore_index
        first_foreground = FIRST_FOREGROUND_CODE if self.num_labels == 1 else 1
        pixels = counted.sum((1, 2)).cpu()
        false_positives = (counted & (predictions >= first_foreground)).sum((1, 2)).cpu()
        rate = false_positives.double() / pixels.clamp(min=1)
        return {"frames": pixels > 0, "pixels": pixels, "rate": rate, "false_positives": false_positives}

    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        parts = ("false_positives", "pixels") if protocol == "dataset" else ("rate", "frames")
        rate = _exact_mean(groups[parts[0]] / groups[parts[1]])
        return {"false_positive_rate": rate, "frames": float(groups["frames"].sum())}


Audio = Literal["positive", "silence", "noise", "off_screen"]


class RobustnessMetrics:
    """Metrics of AVSBench-Robust (arXiv 2502.00358): scores on positive audio, false-positive rates on negative audio.

    The model runs on the same clips with their own audio and with negative audio (silence, white noise, the audio of an
    object outside the frame), for which the correct mask is empty. With s a score on positive audio and r the
    false-positive rate, the mean over the counted types of negative audio, the combined score is 2 s (1 - r) / (s + 1 - r).

    `compute` returns what `BinaryMetrics` or `SemanticMetrics` returns for positive audio, `false_positive_rate` and one
    `false_positive_rate_<type>` for each counted type, `g_miou` and `g_f_score`.

    Clips are counted by the accumulator of the audio with which the model ran: `metrics["silence"].update(...)`. The types
    are `"positive"`, `"silence"`, `"noise"` and `"off_screen"`. A clip keeps its index and its labels for all of them.

    Args:
        num_labels: As for [`ClipMetrics`].
        protocol: As for [`ClipMetrics`].
        ignore_index: As for [`ClipMetrics`].
        score_padding: As for [`ClipMetrics`].

    Example:
        >>> metrics = RobustnessMetrics()
        >>> labels = torch.tensor([[1, 1], [0, 0]]).view(1, 1, 2, 2)
        >>> metrics["positive"].update(torch.tensor([4.0, 4.0, -4.0, -4.0]).view(1, 1, 1, 2, 2), labels)
        >>> metrics["silence"].update(torch.tensor([4.0, -4.0, -4.0, -4.0]).view(1, 1, 1, 2, 2), labels)
        >>> scores = metrics.compute()
        >>> round(scores["miou"], 4), scores["false_positive_rate"], round(scores["g_miou"], 4)
        (1.0, 0.25, 0.8571)
    """

    def __init__(
        self,
        num_labels: int = 1,
        protocol: Protocol = "official",
        *,
        ignore_index: int = IGNORE_INDEX,
        score_padding: bool = False,
    ):
        positive: ClipMetrics
        if num_labels == 1:
            positive = BinaryMetrics(protocol, ignore_index=ignore_index, score_padding=score_padding)
        else:
            positive = SemanticMetrics(num_labels, protocol, ignore_index=ignore_index, score_padding=score_padding)
        self._parts: dict[str, ClipMetrics] = {"positive": positive}
        for kind in get_args(Audio)[1:]:
            self._parts[kind] = FalsePositiveMetrics(
                num_labels, protocol, ignore_index=ignore_index, score_padding=score_padding
            )

    def __getitem__(self, audio: Audio) -> ClipMetrics:
        """Return the accumulator of a type of audio.

        Args:
            audio: The audio with which the model runs.

        Raises:
            ValueError: If the type is unknown.
        """
        if audio not in self._parts:
            raise ValueError(f"Expected audio to be one of {get_args(Audio)}, got {audio!r}.")
        return self._parts[audio]

    def merge(self, other: Self) -> None:
        """Add the clips of another accumulator: `ClipMetrics.merge`."""
        for kind, part in self._parts.items():
            part.merge(other._parts[kind])

    def gather(self) -> Self:
        """Return a new accumulator with the clips of all processes: `ClipMetrics.gather`."""
        gathered = copy.copy(self)
        gathered._parts = {kind: part.gather() for kind, part in self._parts.items()}
        return gathered

    def compute(self, protocol: Protocol | None = None) -> dict[str, float]:
        """Compute the scores of all clips, by name; see the class.

        Args:
            protocol: If not None, replaces the protocol of the accumulator.

        Raises:
            ValueError: If no positive or no negative audio was counted yet, or the protocol is unknown.
        """
        positive, *negative = self._parts
        rates = {
            kind: self._parts[kind].compute(protocol)["false_positive_rate"]
            for kind in negative
            if len(self._parts[kind])
        }
        if not rates:
            raise ValueError(
                f"No negative audio was counted yet. Count clips with metrics[audio].update, audio being one of {tuple(negative)}."
            )
        scores = self._parts[positive].compute(protocol)
        rate = _exact_mean(torch.tensor(list(rates.values()), dtype=torch.float64, device="cpu"))
        return (
            scores
            | {"false_positive_rate": rate}
            | {f"false_positive_rate_{kind}": value for kind, value in rates.items()}
            | {f"g_{name}": _harmonic_mean(scores[name], 1.0 - rate) for name in ("miou", "f_score")}
        )

    def reset(self) -> None:
        """Remove all clips."""
        for part in self._parts.values():
            part.reset()

    def __len__(self) -> int:
        """Return the number of clips, each counted once per type of audio."""
        return sum(len(part) for part in self._parts.values())

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the state as plain tensors, by type of audio: `ClipMetrics.state_dict`."""
        return {kind: part.state_dict() for kind, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Replace the state with one from `state_dict`: `ClipMetrics.load_state_dict`."""
        for kind, part in self._parts.items():
            part.load_state_dict(state[kind])
