"""The measures inside transformers' Trainer, without ever holding full-size logits of more than one batch.

The counting happens in `preprocess_logits_for_metrics`, on the logits of one batch of one process; what the Trainer
gathers is one row of sums per clip.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import EvalPrediction

from .accumulators import IGNORE_INDEX, ClipMetrics


GATHER_PADDING = -100  # what the Trainer fills in where another process has clips with more frames


def ignore_unscored_frames(batch: dict[str, Tensor], ignore_index: int = IGNORE_INDEX) -> dict[str, Tensor]:
    """Write `ignore_index` into labels of padded and unannotated frames, so that labels alone say what is scored.

    Args:
        batch: what a collator makes: `labels` (batch, frames, height, width), and `frame_mask`, `annotated_frames` (batch,
            frames), each optional.
        ignore_index: label of pixels that are not counted.

    Returns:
        The batch with such labels; everything else is as it was.

    Example:
        >>> labels = torch.ones(1, 2, 1, 1, dtype=torch.long)
        >>> ignore_unscored_frames({"labels": labels, "frame_mask": torch.tensor([[True, False]])})["labels"].flatten().tolist()
        [1, 255]
    """
    labels = batch["labels"]
    for name in ("frame_mask", "annotated_frames"):
        if name in batch:
            labels = torch.where(batch[name][..., None, None], labels, ignore_index)
    return batch | {"labels": labels}


class TrainerMetrics:
    """`compute_metrics` and `preprocess_logits_for_metrics` of a Trainer, around one accumulator.

    The masks say which frames are scored, so they must reach the Trainer as labels too:

    ```python
    metrics = TrainerMetrics(BinaryMetrics())
    arguments = TrainingArguments(..., batch_eval_metrics=True, label_names=list(metrics.label_names))
    count = metrics.preprocess_logits_for_metrics
    Trainer(..., args=arguments, compute_metrics=metrics, preprocess_logits_for_metrics=count)
    ```

    Clips with different numbers of frames and more than one process together are too much for the Trainer: it cannot
    gather the masks. Then let the collator end in `ignore_unscored_frames` and take `label_names=["labels"]` in both
    places.

    Clips are numbered as the Trainer hands them over, which is the order of the data set for any number of processes.
    A `"batch"` of the protocol of that name is one step of all processes together.

    Args:
        metrics: the accumulator, which this object resets after each evaluation.
        label_names: the batch's entries that the Trainer keeps as labels, in its order: `"labels"`, and `"frame_mask"`
            and `"annotated_frames"` where the collator makes them.

    Raises:
        ValueError: a name that is none of these, or no `"labels"`.
    """

    def __init__(
        self, metrics: ClipMetrics, label_names: Sequence[str] = ("labels", "frame_mask", "annotated_frames")
    ):
        if "labels" not in label_names or not set(label_names) <= {"labels", "frame_mask", "annotated_frames"}:
            raise ValueError(
                f"label_names are {tuple(label_names)}, expected 'labels' and optionally 'frame_mask' and 'annotated_frames'"
            )
        self.metrics = metrics
        self.label_names = tuple(label_names)

    def preprocess_logits_for_metrics(
        self, logits: Tensor | tuple[Tensor, ...], labels: Tensor | tuple[Tensor, ...]
    ) -> Tensor:
        """Count one batch.

        Args:
            logits: the model's outputs but the loss, or the first of them alone: (batch, frames, num_labels, height,
                width).
            labels: what `label_names` names.

        Returns:
            float64 (batch, row width): sums that take the place of the predictions in the Trainer.

        Raises:
            ValueError: the Trainer's labels are not those of `label_names`, or it has broken the masks; else as
                `ClipMetrics.update`.
        """
        logits = logits if isinstance(logits, Tensor) else logits[0]
        values = (labels,) if isinstance(labels, Tensor) else labels
        if len(values) != len(self.label_names):
            raise ValueError(
                f"the Trainer handed over {len(values)} labels, expected {self.label_names}: set TrainingArguments(label_names=...) to the same names"
            )
        named = dict(zip(self.label_names, values, strict=True))
        masks = {
            name: str(value.dtype) for name, value in named.items() if name != "labels" and value.dtype != torch.bool
        }
        if masks:
            raise ValueError(
                f"masks came as {masks}, expected bool: where processes differ in the number of frames, the Trainer fills masks up with -100; let the "
                "collator end in ignore_unscored_frames and name only 'labels'"
            )
        # Frames that only another process has are no frames at all.
        named["labels"] = named["labels"].masked_fill(named["labels"] == GATHER_PADDING, self.metrics.ignore_index)
        rows = self.metrics.count(logits, **named)
        # Processes on GPUs can only exchange what lies there; mps knows no float64, but is always alone.
        return rows if logits.device.type == "mps" else rows.to(logits.device)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Add the rows of one step; at the end, return the scores and start anew.

        Args:
            prediction: `predictions` holds the rows of `preprocess_logits_for_metrics`.
            compute_result: whether this was the last step.

        Returns:
            The scores, or nothing before the last step.

        Raises:
            ValueError: the predictions are no rows, because the Trainer was built without
                `preprocess_logits_for_metrics`.
        """
        rows = torch.as_tensor(prediction.predictions)
        if rows.ndim != 2:
            raise ValueError(
                f"predictions are {tuple(rows.shape)}, expected rows (batch, row width): give the Trainer preprocess_logits_for_metrics too"
            )
        self.metrics.append(rows.cpu())
        if not compute_result:
            return {}
        scores = self.metrics.compute()
        self.metrics.reset()
        return scores
