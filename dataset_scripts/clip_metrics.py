"""What the accumulators share: one row of sums per clip, the three protocols, merging across processes."""

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from .metric_counts import IGNORE_INDEX, reduce_logits


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
        label_mask: Tensor | None = None,
        clip_indices: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Count one batch of clips.

        Args:
            logits: (batch, frames, num_labels, height, width) at the size of the labels.
            labels: integer (batch, frames, height, width): 0/1 for the binary measures, class indices for the semantic
                ones, `ignore_index` for pixels that are not counted.
            frame_mask: bool (batch, frames), False = padding; None = all frames are real.
            label_mask: bool (batch, frames), which frames are annotated; None = all.
            clip_indices: position of each clip in the data set. Needed to merge processes or to resume: a clip that
                comes twice (samplers repeat clips to fill the last batch) then counts once. Without, clips are
                numbered as they come.

        Raises:
            ValueError: shapes that do not fit, NaN, label values out of range, or a clip index that comes again with
                other labels.
        """
        self.append(self.count(logits, labels, frame_mask, label_mask), clip_indices)

    def update_predictions(
        self,
        predictions: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        label_mask: Tensor | None = None,
        clip_indices: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Count one batch whose logits went through `reduce` before; arguments and errors as for `update`.

        `predictions` is (batch, frames, height, width): for the binary measures codes of `quantize_probabilities` (a
        0/1 mask is a probability: code it too), for the semantic ones class indices.
        """
        self.append(self.count_predictions(predictions, labels, frame_mask, label_mask), clip_indices)

    def count(
        self,
        logits: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        label_mask: Tensor | None = None,
    ) -> Tensor:
        """Rows of a batch, float64 (batch, row width), on the CPU; arguments as for `update`. Changes no state."""
        return self.count_predictions(self.reduce(logits), labels, frame_mask, label_mask)

    def count_predictions(
        self,
        predictions: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        label_mask: Tensor | None = None,
    ) -> Tensor:
        """Rows of a batch that went through `reduce`, float64 (batch, row width), on the CPU. Changes no state.

        A batch without clips, as a process may have where there are more processes than clips, has no rows.
        """
        if predictions.shape != labels.shape or labels.ndim != 4 or 0 in labels.shape[1:]:
            raise ValueError(
                f"predictions are {tuple(predictions.shape)} and labels {tuple(labels.shape)}, expected both as (batch, frames, height, width) of the "
                "same size: resize the logits to the labels first"
            )
        targets = self._targets(labels.to(predictions.device), frame_mask, label_mask)
        if not len(labels):
            return torch.zeros(0, sum(self.columns.values()), dtype=torch.float64)
        table = self._measure_frames(predictions.flatten(0, 1), targets.flatten(0, 1))
        rows = torch.cat([table[name].double().view(-1, width) for name, width in self.columns.items()], dim=1)
        # Frame after frame, because a library's sum may round otherwise when there is padding behind: zeros added one
        # by one change nothing.
        return functools.reduce(torch.add, rows.view(*labels.shape[:2], -1).unbind(1))

    def _targets(self, labels: Tensor, frame_mask: Tensor | None, label_mask: Tensor | None) -> Tensor:
        """Labels with `ignore_index` wherever nothing is to be scored."""
        if labels.is_floating_point():
            raise ValueError(
                f"labels are {labels.dtype}, expected whole numbers: class indices, or 0/1 for a binary mask"
            )
        real, annotated = (self._checked_mask(mask, labels) for mask in (frame_mask, label_mask))
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
