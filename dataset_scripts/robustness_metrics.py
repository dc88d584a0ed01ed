"""Does a model listen? The measures of AVSBench-Robust (arXiv 2502.00358): true sound against wrong sound."""

import copy
from collections.abc import Sequence
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from .clip_metrics import ClipMetrics, Protocol, exact_mean
from .metric_counts import IGNORE_INDEX, harmonic_mean
from .metrics import BinaryMetrics, FalsePositiveMetrics, SemanticMetrics


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
        label_mask: Tensor | None = None,
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
            label_mask: bool (batch, frames), which frames are annotated; None = all.
            clip_indices: position of each clip in the data set, the same for every kind of audio.
            audio: `"positive"`, `"silence"`, `"noise"` or `"off_screen"`.

        Raises:
            ValueError: unknown kind of audio; else as `BinaryMetrics.update`.
        """
        self.update_predictions(self.reduce(logits), labels, frame_mask, label_mask, clip_indices, audio=audio)

    def update_predictions(
        self,
        predictions: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        label_mask: Tensor | None = None,
        clip_indices: Sequence[int] | Tensor | None = None,
        *,
        audio: Audio = "positive",
    ) -> None:
        """Count one batch whose logits went through `reduce` before; arguments and errors as for `update`."""
        self.append(
            self.count_predictions(predictions, labels, frame_mask, label_mask, audio=audio), clip_indices, audio=audio
        )

    def count_predictions(
        self,
        predictions: Tensor,
        labels: Tensor,
        frame_mask: Tensor | None = None,
        label_mask: Tensor | None = None,
        *,
        audio: Audio = "positive",
    ) -> Tensor:
        """Rows of a batch, float64 (batch, row width); arguments as for `update_predictions`. Changes no state."""
        if audio != "positive":
            labels = torch.where(labels == self.ignore_index, labels, 0)
        return self._part(audio).count_predictions(predictions, labels, frame_mask, label_mask)

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
