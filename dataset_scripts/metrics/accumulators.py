"""Does a model listen? The measures of AVSBench-Robust (arXiv 2502.00358): true sound against wrong sound."""

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Self, get_args

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


Protocol = Literal["official", "batch", "dataset"]
Table = dict[str, Tensor]  # column name -> float64 (rows, width of the column)


class ClipMetrics(ABC):
    """What all accumulators share: which pixels count, the rows of the clips, their merging.

    Args:
        num_labels: channels of the logits: 1 is the binary task (labels 0/1), more are classes with background as
            class 0.
        protocol: what `compute` uses unless told otherwise.
        ignore_index: label of pixels that are not counted.
        score_padding: also score the padded frames of short clips, against an empty (background) target, as AVSBench's
            own semantic test does. The number of padded frames is the batch's, so pad all clips to the same length
            (AVSBench: 10 frames).

    Raises:
        ValueError: unknown protocol, or an `ignore_index` that is a class.
    """

    label_columns: tuple[str, ...]  # the columns that depend on the labels alone: a clip seen twice agrees in them

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
                f"num_labels is {num_labels} and ignore_index {ignore_index}, expected at least one label and an ignore_index that is none of them"
            )
        self.num_labels = num_labels
        self.protocol = checked_protocol(protocol)
        self.ignore_index = ignore_index
        self.score_padding = score_padding
        self.reset()

    @property
    @abstractmethod
    def columns(self) -> dict[str, int]:
        """Column names of a row, each with its width."""

    def reduce(self, logits: Tensor) -> Tensor:
        """Keep one byte per pixel, without loss for these measures: see `reduce_logits`."""
        return reduce_logits(logits, self.num_labels)

    @abstractmethod
    def _measure_frames(self, predictions: Tensor, targets: Tensor) -> Table:
        """Columns per frame, on the CPU; arguments are (frames, height, width), targets `ignore_index` where not scored."""

    @abstractmethod
    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        """Scores from the summed rows of each group: the clips, the batches, or one row for the data set."""

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        annotated_frames: Tensor | None = None,
        clip_indices: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Count one batch of clips.

        Args:
            logits: (batch, frames, num_labels, height, width) at the size of the labels.
            labels: integer (batch, frames, height, width): 0/1 for the binary measures, class indices for the semantic
                ones, `ignore_index` for pixels that are not counted.
            frame_mask: bool (batch, frames), False = padding; None = all frames are real.
            annotated_frames: bool (batch, frames), which frames are annotated; None = all.
            clip_indices: position of each clip in the data set. Needed to merge processes or to resume: a clip that
                comes twice (samplers repeat clips to fill the last batch) then counts once. Without, clips are
                numbered as they come.

        Raises:
            ValueError: shapes that do not fit, NaN, label values out of range, or a clip index that comes again with
                other labels.
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
        """Count one batch whose logits went through `reduce` before; arguments and errors as for `update`.

        `predictions` is (batch, frames, height, width): for the binary measures codes of `quantize_probabilities` (a
        0/1 mask is a probability: code it too), for the semantic ones class indices.
        """
        self.append(self.count_predictions(predictions, labels, frame_mask, annotated_frames), clip_indices)

    def count(
        self,
        logits: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        annotated_frames: Tensor | None = None,
    ) -> Tensor:
        """Rows of a batch, float64 (batch, row width), on the CPU; arguments as for `update`. Changes no state."""
        return self.count_predictions(self.reduce(logits), labels, frame_mask, annotated_frames)

    def count_predictions(
        self,
        predictions: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        annotated_frames: Tensor | None = None,
    ) -> Tensor:
        """Rows of a batch that went through `reduce`, float64 (batch, row width), on the CPU. Changes no state.

        A batch without clips, as a process may have where there are more processes than clips, has no rows.
        """
        if predictions.shape != labels.shape or labels.ndim != 4 or 0 in labels.shape[1:]:
            raise ValueError(
                f"predictions are {tuple(predictions.shape)} and labels {tuple(labels.shape)}, expected both as (batch, frames, height, width) of the "
                "same size: resize the logits to the labels first"
            )
        targets = self._targets(labels.to(predictions.device), frame_mask, annotated_frames)
        if not len(labels):
            return torch.zeros(0, sum(self.columns.values()), dtype=torch.float64)
        table = self._measure_frames(predictions.flatten(0, 1), targets.flatten(0, 1))
        rows = torch.cat([table[name].double().view(-1, width) for name, width in self.columns.items()], dim=1)
        # Frame after frame, because a library's sum may round otherwise when there is padding behind: zeros added one
        # by one change nothing.
        return functools.reduce(torch.add, rows.view(*labels.shape[:2], -1).unbind(1))

    def _targets(self, labels: Tensor, frame_mask: Tensor | None, annotated_frames: Tensor | None) -> Tensor:
        """Labels with `ignore_index` wherever nothing is to be scored."""
        if labels.is_floating_point():
            raise ValueError(
                f"labels are {labels.dtype}, expected whole numbers: class indices, or 0/1 for a binary mask"
            )
        real, annotated = (self._checked_mask(mask, labels) for mask in (frame_mask, annotated_frames))
        scored = annotated & real
        if self.score_padding:
            labels = torch.where(real[..., None, None], labels, 0)
            scored = annotated | ~real
        targets = torch.where(scored[..., None, None], labels.long(), self.ignore_index)
        classes = max(self.num_labels, 2)
        unexpected = targets[(targets != self.ignore_index) & ((targets < 0) | (targets >= classes))]
        if unexpected.numel() > 0:
            raise ValueError(
                f"labels hold {unexpected[0].item()}, expected 0 to {classes - 1}, or {self.ignore_index} for pixels that are not counted"
            )
        return targets

    @staticmethod
    def _checked_mask(mask: Tensor | None, labels: Tensor) -> Tensor:
        if mask is None:
            return torch.ones(labels.shape[:2], dtype=torch.bool, device=labels.device)
        if mask.shape != labels.shape[:2]:
            raise ValueError(f"a mask is {tuple(mask.shape)}, expected (batch, frames) = {tuple(labels.shape[:2])}")
        return mask.to(labels.device, torch.bool)

    def append(self, rows: Tensor, clip_indices: Sequence[int] | Tensor | None = None) -> None:
        """Add the rows that `count` made of one batch.

        Args:
            rows: float64 (batch, row width).
            clip_indices: as for `update`.

        Raises:
            ValueError: clips with and without an index are mixed, or an index comes again with other labels.
        """
        numbered = clip_indices is not None
        keys = [int(index) for index in clip_indices] if clip_indices is not None else self._next_keys(len(rows))
        if len(keys) != len(rows):
            raise ValueError(f"{len(keys)} clip indices came with {len(rows)} clips, expected one each")
        self._add_rows(keys, rows, [self._next_batch()] * len(rows), numbered=numbered)

    def _next_keys(self, count: int) -> list[int]:
        first = max(self._rows, default=-1) + 1
        return list(range(first, first + count))

    def _next_batch(self) -> int:
        return max(self._batches.values(), default=-1) + 1

    def _add_rows(self, keys: Sequence[int], rows: Tensor, batches: Sequence[int], *, numbered: bool) -> None:
        if self._rows and numbered != self._numbered:
            raise ValueError("clips with and without clip_indices are mixed: give them in every update or in none")
        self._numbered = numbered
        for key, row, batch in zip(keys, rows, batches, strict=True):
            if key not in self._rows:
                self._rows[key], self._batches[key] = row, batch
                continue
            known, repeated = self._split(self._rows[key]), self._split(row)
            if not all(torch.equal(known[name], repeated[name]) for name in self.label_columns):
                raise ValueError(
                    f"clip index {key} came again with other labels: number the clips over the whole data set, and call reset() between evaluations"
                )

    def _split(self, rows: Tensor) -> Table:
        return dict(zip(self.columns, rows.split(list(self.columns.values()), dim=-1), strict=True))

    def reset(self) -> None:
        """Forget all clips."""
        self._rows: dict[int, Tensor] = {}
        self._batches: dict[int, int] = {}
        self._numbered = False

    def __len__(self) -> int:
        """Number of clips counted so far."""
        return len(self._rows)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as plain tensors: clip_indices and batch_indices (clips,), rows (clips, row width), numbered ()."""
        keys = sorted(self._rows)
        width = sum(self.columns.values())
        return {
            "clip_indices": torch.tensor(keys, dtype=torch.long),
            "batch_indices": torch.tensor([self._batches[key] for key in keys], dtype=torch.long),
            "rows": torch.stack([self._rows[key] for key in keys])
            if keys
            else torch.zeros(0, width, dtype=torch.float64),
            "numbered": torch.tensor(self._numbered),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the state by one from `state_dict`, to resume an evaluation; errors as for `merge`."""
        self.reset()
        self._add_state(state)

    def merge(self, other: Self) -> None:
        """Add the clips of another accumulator, as if its batches had come here.

        Raises:
            ValueError: the other one counts other things, or clips with and without an index are mixed, or an index
                comes again with other labels.
        """
        self._add_state(other.state_dict())

    def _add_state(self, state: dict[str, Tensor]) -> None:
        width = sum(self.columns.values())
        if state["rows"].shape[1] != width:
            raise ValueError(
                f"rows to merge are {state['rows'].shape[1]} wide, expected {width}: the other accumulator is of another kind or number of classes"
            )
        if len(state["rows"]) == 0:
            return
        numbered = bool(state["numbered"])
        keys = state["clip_indices"].tolist() if numbered else self._next_keys(len(state["rows"]))
        first_batch = self._next_batch()
        batches = [first_batch + batch for batch in state["batch_indices"].tolist()]
        self._add_rows(keys, state["rows"], batches, numbered=numbered)

    def gather(self) -> Self:
        """A new accumulator with the clips of all processes of `torch.distributed`, the same on each.

        In a single process it is a copy. Errors as for `merge`: give `clip_indices` to `update`, because samplers
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
        """Scores of all clips so far, by name.

        Args:
            protocol: another protocol than the accumulator's own; all three come from the same rows.

        Raises:
            ValueError: nothing was counted yet, or unknown protocol.
        """
        protocol = self.protocol if protocol is None else checked_protocol(protocol)
        return self._summarize(self._groups(protocol), protocol)

    def per_clip(self) -> dict[int, dict[str, float]]:
        """Scores of each clip alone (official protocol), by clip index: to find the worst ones."""
        table = self._split(self.state_dict()["rows"])
        clips = {
            key: {name: column[i : i + 1] for name, column in table.items()}
            for i, key in enumerate(sorted(self._rows))
        }
        return {key: self._summarize(clip, "official") for key, clip in clips.items() if clip["frames"] > 0}

    def _groups(self, protocol: Protocol) -> Table:
        """Rows summed over the groups of a protocol; clips without any scored frame are left out."""
        state = self.state_dict()
        rows = state["rows"]
        scored = self._split(rows)["frames"][:, 0] > 0
        if not scored.any():
            raise ValueError("no frame was scored yet: call update with annotated clips before compute")
        if protocol == "dataset":
            return self._split(exact_sum(rows[scored])[None])
        if protocol == "official":
            return self._split(rows[scored])
        batches, members = state["batch_indices"][scored].unique(return_inverse=True)
        return self._split(rows.new_zeros(len(batches), rows.shape[1]).index_add_(0, members, rows[scored]))


def checked_protocol(protocol: Protocol) -> Protocol:
    """The protocol itself; ValueError for a name that is none."""
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol is {protocol!r}, expected one of {get_args(Protocol)}")
    return protocol


def exact_sum(rows: Tensor) -> Tensor:
    """Column sums of (rows, width), exactly rounded and so the same in any order."""
    return rows.new_tensor([math.fsum(column) for column in rows.T.tolist()])


def exact_mean(values: Tensor) -> float:
    """Mean of all values, from an exactly rounded sum."""
    return math.fsum(values.flatten().tolist()) / values.numel()


class BinaryMetrics(ClipMetrics):
    """IoU ("J") and F score of foreground masks: the measures of AVSBench's S4 and MS3.

    A pixel is foreground if sigmoid(logit) > 0.5; a frame with an empty target scores the fraction of pixels left
    empty in IoU and is skipped in F; F is the maximum over 255 thresholds of a group's mean curve, so it depends on
    the grouping. `compute` returns `miou`, `f_score` in [0, 1], and the numbers of scored `frames`, and of `groups`
    that were averaged.

    Example:
        >>> import torch
        >>> metrics = BinaryMetrics()
        >>> logits = torch.tensor([[4.0, 4.0], [-4.0, -4.0]]).view(1, 1, 1, 2, 2)
        >>> metrics.update(logits, torch.tensor([[1, 0], [0, 0]]).view(1, 1, 2, 2))
        >>> {name: round(value, 4) for name, value in metrics.compute().items()}
        {'miou': 0.5, 'f_score': 0.5652, 'frames': 1.0, 'groups': 1.0}
    """

    label_columns = ("frames", "labelled_frames", "target")

    def __init__(
        self, protocol: Protocol = "official", *, ignore_index: int = IGNORE_INDEX, score_padding: bool = False
    ):
        super().__init__(1, protocol, ignore_index=ignore_index, score_padding=score_padding)

    @property
    def columns(self) -> dict[str, int]:
        """Column names of a row, each with its width: sums over the frames of the clip."""
        scalars = ("frames", "pixels", "iou", "labelled_frames", "intersection", "predicted", "target")
        curves = ("curve", "curve_intersection", "curve_predicted")
        return dict.fromkeys(scalars, 1) | dict.fromkeys(curves, THRESHOLD_COUNT)

    def _measure_frames(self, predictions: Tensor, targets: Tensor) -> Table:
        histogram = code_histogram(predictions, targets, self.ignore_index).cpu()
        pixels, target = histogram.sum((1, 2)), histogram[:, 1].sum(1)
        above_half, reached = foreground_counts(histogram), threshold_counts(histogram)
        intersection, predicted = above_half[:, 1], above_half.sum(1)
        curve = f_score(reached[:, 1], reached.sum(1), target[:, None])
        return {
            "frames": pixels > 0,
            "pixels": pixels,
            "iou": binary_iou(intersection, predicted, target, pixels),
            "labelled_frames": target > 0,
            "intersection": intersection,
            "predicted": predicted,
            "target": target,
            "curve": curve,  # zero for an empty target, so such frames drop out of the sum
            "curve_intersection": reached[:, 1],
            "curve_predicted": reached.sum(1),
        }

    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        if protocol == "dataset":
            iou = binary_iou(*(groups[name] for name in ("intersection", "predicted", "target", "pixels")))
            curve = f_score(groups["curve_intersection"], groups["curve_predicted"], groups["target"])
        else:
            iou = groups["iou"] / groups["frames"]
            curve = groups["curve"] / groups["labelled_frames"].clamp(min=1.0)
        return {
            "miou": exact_mean(iou),
            "f_score": exact_mean(curve.amax(1)),
            "frames": float(groups["frames"].sum()),
            "groups": float(len(iou)),
        }


class SemanticMetrics(ClipMetrics):
    """Mean IoU and F score over classes: the measures of AVSBench-semantic (AVSS).

    The class of a pixel is the argmax, the first of equals. `"official"`: per frame and class, then the mean over the
    frames that show the class in the prediction or the target, then the mean over all classes (one never seen counts
    0). `"batch"`: that inside each update call, then per class the mean over the calls that show it. `"dataset"`:
    ratios of pixels summed over everything.

    `compute` returns `miou` and `f_score` over all classes, `..._no_background` over classes 1 and up,
    `..._seen_classes` over the classes seen, and the numbers of `classes_seen` and scored `frames`.

    Args:
        num_labels: number of classes with background, which is class 0 (AVSS: 71).
        protocol: what `compute` uses unless told otherwise.
        ignore_index: label of pixels that are not counted.
        score_padding: also score the padded frames of short clips, as published.
        report_published_no_background: also return `..._published_no_background`: the official script slices `[:-1]`,
            which keeps the background and drops the last class (AVSS: woman). Wrong, but what published tables hold.

    Raises:
        ValueError: fewer than two classes, unknown protocol, or an `ignore_index` that is a class.

    Example:
        >>> import torch
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
            raise ValueError(
                f"num_labels is {num_labels}, expected two classes or more: for the binary task take BinaryMetrics"
            )
        super().__init__(num_labels, protocol, ignore_index=ignore_index, score_padding=score_padding)
        self.report_published_no_background = report_published_no_background

    @property
    def columns(self) -> dict[str, int]:
        """Column names of a row, each with its width: sums over the frames of the clip."""
        return {"frames": 1} | dict.fromkeys(
            ("iou", "f_score", "seen_frames", "intersection", "predicted", "target"), self.num_labels
        )

    def _measure_frames(self, predictions: Tensor, targets: Tensor) -> Table:
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

    def per_class(self, protocol: Protocol | None = None) -> Table:
        """Scores of each class, float64 (num_labels,): `iou` and `f_score`, 0 if never seen, and `seen` (0 or 1).

        Raises:
            ValueError: nothing was counted yet, or unknown protocol.
        """
        protocol = self.protocol if protocol is None else checked_protocol(protocol)
        return self._class_scores(self._groups(protocol), protocol)

    def _class_scores(self, groups: Table, protocol: Protocol) -> Table:
        if protocol == "dataset":
            counts = [groups[name][0] for name in ("intersection", "predicted", "target")]
            seen = (counts[1] + counts[2] > 0).double()
            return {"iou": class_iou(*counts), "f_score": f_score(*counts), "seen": seen}
        if protocol == "official":
            groups = {name: exact_sum(column)[None] for name, column in groups.items()}
        # A mean over the frames of each group that show the class, then over the groups that show it.
        seen = (groups["seen_frames"] > 0).double()
        frames, group_counts = groups["seen_frames"].clamp(min=1.0), seen.sum(0).clamp(min=1.0)
        scores = {name: exact_sum(groups[name] / frames) / group_counts for name in ("iou", "f_score")}
        return scores | {"seen": seen.amax(0)}

    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        scores = self._class_scores(groups, protocol)
        slices = {"": slice(None), "_no_background": slice(1, None)}
        if self.report_published_no_background:
            slices["_published_no_background"] = slice(None, -1)
        means = {}
        for name, column in (("miou", scores["iou"]), ("f_score", scores["f_score"])):
            means |= {f"{name}{suffix}": exact_mean(column[classes]) for suffix, classes in slices.items()}
            means[f"{name}_seen_classes"] = exact_mean(column[scores["seen"] > 0])
        return means | {"classes_seen": float(scores["seen"].sum()), "frames": float(groups["frames"].sum())}


class FalsePositiveMetrics(ClipMetrics):
    """False-positive rate on negative audio: the fraction of pixels claimed although nothing in the picture sounds.

    `"official"` and `"batch"` take the mean over the frames of each group, then over the groups; `"dataset"` divides
    the summed pixels. `compute` returns `false_positive_rate` in [0, 1] and the number of scored `frames`. Foreground
    is a probability above one half, or any class but 0. What the labels say besides `ignore_index` does not matter:
    the right mask is empty.

    Example:
        >>> import torch
        >>> metrics = FalsePositiveMetrics(num_labels=1)
        >>> metrics.update(torch.tensor([4.0, -4.0, -4.0, -4.0]).view(1, 1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.long))
        >>> metrics.compute()
        {'false_positive_rate': 0.25, 'frames': 1.0}
    """

    label_columns = ("frames", "pixels")

    @property
    def columns(self) -> dict[str, int]:
        """Column names of a row, each with its width: sums over the frames of the clip."""
        return dict.fromkeys(("frames", "pixels", "rate", "false_positives"), 1)

    def _measure_frames(self, predictions: Tensor, targets: Tensor) -> Table:
        counted = targets != self.ignore_index
        first_foreground = FIRST_FOREGROUND_CODE if self.num_labels == 1 else 1
        pixels = counted.sum((1, 2)).cpu()
        false_positives = (counted & (predictions >= first_foreground)).sum((1, 2)).cpu()
        rate = false_positives.double() / pixels.clamp(min=1)
        return {"frames": pixels > 0, "pixels": pixels, "rate": rate, "false_positives": false_positives}

    def _summarize(self, groups: Table, protocol: Protocol) -> dict[str, float]:
        parts = ("false_positives", "pixels") if protocol == "dataset" else ("rate", "frames")
        rate = exact_mean(groups[parts[0]] / groups[parts[1]])
        return {"false_positive_rate": rate, "frames": float(groups["frames"].sum())}


Audio = Literal["positive", "silence", "noise", "off_screen"]


class RobustnessMetrics:
    """Scores on positive audio, false-positive rates on negative audio, and their harmonic means.

    The same clips are run with their true sound and with wrong ones (silence, white noise, the sound of something off
    the screen), for which the right mask is empty. With s a score on positive audio and r the false-positive rate, the
    mean over the kinds of negative audio that were counted, the combined score is 2 s (1 - r) / (s + 1 - r).

    `compute` returns what `BinaryMetrics` or `SemanticMetrics` returns for the positive audio, `false_positive_rate`
    and one `false_positive_rate_<kind>` for each kind counted, `g_miou` and `g_f_score`.

    Args:
        num_labels: 1 for the binary task, else the number of classes with background as class 0.
        protocol: `"official"`, `"batch"` or `"dataset"`, as for the other measures.
        ignore_index: label of pixels that are not counted.
        score_padding: also score padded frames, against an empty target.

    Raises:
        ValueError: unknown protocol, or an `ignore_index` that is a class.

    Example:
        >>> metrics = RobustnessMetrics()
        >>> labels = torch.tensor([[1, 1], [0, 0]]).view(1, 1, 2, 2)
        >>> metrics.update(torch.tensor([4.0, 4.0, -4.0, -4.0]).view(1, 1, 1, 2, 2), labels)
        >>> metrics.update(torch.tensor([4.0, -4.0, -4.0, -4.0]).view(1, 1, 1, 2, 2), labels, audio="silence")
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
        self.ignore_index = ignore_index
        positive: ClipMetrics
        if num_labels == 1:
            positive = BinaryMetrics(protocol, ignore_index=ignore_index, score_padding=score_padding)
        else:
            positive = SemanticMetrics(num_labels, protocol, ignore_index=ignore_index, score_padding=score_padding)
        self.parts: dict[str, ClipMetrics] = {"positive": positive}
        for kind in get_args(Audio)[1:]:
            self.parts[kind] = FalsePositiveMetrics(
                num_labels, protocol, ignore_index=ignore_index, score_padding=score_padding
            )

    def reduce(self, logits: Tensor) -> Tensor:
        """Keep one byte per pixel, without loss for these measures: see `reduce_logits`."""
        return self.parts["positive"].reduce(logits)

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        annotated_frames: Tensor | None = None,
        clip_indices: Sequence[int] | Tensor | None = None,
        *,
        audio: Audio = "positive",
    ) -> None:
        """Count one batch of clips that were all heard with one kind of audio.

        Args:
            logits: (batch, frames, num_labels, height, width) at the size of the labels.
            labels: integer (batch, frames, height, width). With negative audio only their `ignore_index` pixels
                matter.
            frame_mask: bool (batch, frames), False = padding; None = all frames are real.
            annotated_frames: bool (batch, frames), which frames are annotated; None = all.
            clip_indices: position of each clip in the data set, the same for every kind of audio.
            audio: `"positive"`, `"silence"`, `"noise"` or `"off_screen"`.

        Raises:
            ValueError: unknown kind of audio; else as `BinaryMetrics.update`.
        """
        self.update_predictions(self.reduce(logits), labels, frame_mask, annotated_frames, clip_indices, audio=audio)

    def update_predictions(
        self,
        predictions: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        annotated_frames: Tensor | None = None,
        clip_indices: Sequence[int] | Tensor | None = None,
        *,
        audio: Audio = "positive",
    ) -> None:
        """Count one batch whose logits went through `reduce` before; arguments and errors as for `update`."""
        self.append(
            self.count_predictions(predictions, labels, frame_mask, annotated_frames, audio=audio),
            clip_indices,
            audio=audio,
        )

    def count_predictions(
        self,
        predictions: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        annotated_frames: Tensor | None = None,
        *,
        audio: Audio = "positive",
    ) -> Tensor:
        """Rows of a batch, float64 (batch, row width); arguments as for `update_predictions`. Changes no state."""
        if audio != "positive":
            labels = torch.where(labels == self.ignore_index, labels, 0)
        return self._part(audio).count_predictions(predictions, labels, frame_mask, annotated_frames)

    def append(
        self, rows: Tensor, clip_indices: Sequence[int] | Tensor | None = None, *, audio: Audio = "positive"
    ) -> None:
        """Add the rows that `count_predictions` made of one batch; errors as for `BinaryMetrics.append`."""
        self._part(audio).append(rows, clip_indices)

    def _part(self, audio: Audio) -> ClipMetrics:
        if audio not in self.parts:
            raise ValueError(f"audio is {audio!r}, expected one of {get_args(Audio)}")
        return self.parts[audio]

    def __len__(self) -> int:
        """Number of clips counted so far, each once per kind of audio."""
        return sum(len(part) for part in self.parts.values())

    def compute(self, protocol: Protocol | None = None) -> dict[str, float]:
        """Scores of all clips so far, by name; see the class.

        Args:
            protocol: another protocol than the accumulator's own.

        Raises:
            ValueError: no positive or no negative audio was counted yet, or unknown protocol.
        """
        positive, *negative = self.parts
        rates = {
            kind: self.parts[kind].compute(protocol)["false_positive_rate"]
            for kind in negative
            if len(self.parts[kind])
        }
        if not rates:
            raise ValueError(
                f"no negative audio was counted yet: call update with audio set to one of {tuple(negative)}"
            )
        scores = self.parts[positive].compute(protocol)
        rate = exact_mean(torch.tensor(list(rates.values()), dtype=torch.float64))
        return (
            scores
            | {"false_positive_rate": rate}
            | {f"false_positive_rate_{kind}": value for kind, value in rates.items()}
            | {f"g_{name}": harmonic_mean(scores[name], 1.0 - rate) for name in ("miou", "f_score")}
        )

    def reset(self) -> None:
        """Forget all clips."""
        for part in self.parts.values():
            part.reset()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The whole state as plain tensors, by kind of audio."""
        return {kind: part.state_dict() for kind, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Replace the state by one from `state_dict`; errors as for `merge`."""
        for kind, part in self.parts.items():
            part.load_state_dict(state[kind])

    def merge(self, other: Self) -> None:
        """Add the clips of another accumulator; errors as for `BinaryMetrics.merge`."""
        for kind, part in self.parts.items():
            part.merge(other.parts[kind])

    def gather(self) -> Self:
        """A new accumulator with the clips of all processes, the same on each; this one stays as it is."""
        gathered = copy.copy(self)
        gathered.parts = {kind: part.gather() for kind, part in self.parts.items()}
        return gathered
