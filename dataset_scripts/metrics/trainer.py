"""The metrics inside transformers' Trainer, which never holds full-size logits of more than one batch.

Pixels are counted in `preprocess_logits_for_metrics`, on the logits of one batch of one process. The Trainer gathers one
row of sums per clip.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import EvalPrediction

from .segmentation import IGNORE_INDEX, ClipMetrics


GATHER_PADDING = -100  # what the Trainer pads labels with if another process has clips with more frames


def ignore_unscored_frames(batch: dict[str, Tensor], ignore_index: int = IGNORE_INDEX) -> dict[str, Tensor]:
    """Set the labels of padded and unannotated frames to `ignore_index`, so that the masks are not needed for scoring.

    Args:
        batch: From a collator: `labels` (batch, frames, height, width), and the optional `frame_mask` and
            `annotated_frames` (batch, frames).
        ignore_index: Label of pixels that are not counted.

    Returns:
        The batch with the new labels; all other entries are unchanged.

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
    """Provide `compute_metrics` and `preprocess_logits_for_metrics` of a Trainer with an accumulator.

    The masks select the frames to score, so the Trainer must treat them as labels too:

    ```python
    metrics = TrainerMetrics(BinaryMetrics())
    arguments = TrainingArguments(..., batch_eval_metrics=True, label_names=list(metrics.label_names))
    count = metrics.preprocess_logits_for_metrics
    Trainer(..., args=arguments, compute_metrics=metrics, preprocess_logits_for_metrics=count)
    ```

    If clips have different numbers of frames and there is more than one process, the Trainer cannot gather the masks.
    Then call `ignore_unscored_frames` at the end of the collator and pass `label_names=["labels"]` in both places.

    Clips are numbered in the order in which the Trainer passes them, which is the order of the data set for any number of
    processes. With the protocol `"batch"`, a batch is one step of all processes together.

    Args:
        metrics: The accumulator, which this object resets after each evaluation.
        label_names: The entries of the batch that the Trainer keeps as labels, in this order: `"labels"`, and
            `"frame_mask"` and `"annotated_frames"` if the collator returns them.

    Raises:
        ValueError: If a name is none of these, or `"labels"` is missing.
    """

    def __init__(
        self, metrics: ClipMetrics, label_names: Sequence[str] = ("labels", "frame_mask", "annotated_frames")
    ):
        if "labels" not in label_names or not set(label_names) <= {"labels", "frame_mask", "annotated_frames"}:
            raise ValueError(
                f"Expected label_names to be 'labels' and optionally 'frame_mask' and 'annotated_frames', got {tuple(label_names)}."
            )
        self.metrics = metrics
        self.label_names = tuple(label_names)

    def preprocess_logits_for_metrics(
        self, logits: Tensor | tuple[Tensor, ...], labels: Tensor | tuple[Tensor, ...]
    ) -> Tensor:
        """Count a batch.

        Args:
            logits: The outputs of the model without the loss, or only the first of them: (batch, frames, num_labels,
                height, width).
            labels: The entries of `label_names`.

        Returns:
            float64 (batch, row width): sums that replace the predictions in the Trainer.

        Raises:
            ValueError: If the labels are not those of `label_names`, the Trainer has padded the masks, or as for
                `ClipMetrics.update`.
        """
        logits = logits if isinstance(logits, Tensor) else logits[0]
        values = (labels,) if isinstance(labels, Tensor) else labels
        if len(values) != len(self.label_names):
            raise ValueError(
                f"Expected the labels {self.label_names}, got {len(values)} from the Trainer. Set TrainingArguments(label_names=...) to the same names."
            )
        named = dict(zip(self.label_names, values, strict=True))
        masks = {
            name: str(value.dtype) for name, value in named.items() if name != "labels" and value.dtype != torch.bool
        }
        if masks:
            raise ValueError(
                f"Expected bool masks, got {masks}: if processes differ in the number of frames, the Trainer pads masks with "
                f"{GATHER_PADDING}. Call ignore_unscored_frames at the end of the collator and pass label_names=['labels']."
            )
        # Frames that only another process has are not scored.
        named["labels"] = named["labels"].masked_fill(named["labels"] == GATHER_PADDING, self.metrics.ignore_index)
        rows = self.metrics.count(logits, **named)
        # Processes on GPUs can only exchange tensors on GPUs. MPS does not support float64, but has one process only.
        return rows if logits.device.type == "mps" else rows.to(logits.device)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Add the rows of a step; after the last step, return the scores and reset the accumulator.

        Args:
            prediction: `predictions` holds the rows of `preprocess_logits_for_metrics`.
            compute_result: Whether this was the last step.

        Returns:
            The scores; empty before the last step.

        Raises:
            ValueError: If the predictions are not rows, because the Trainer was created without
                `preprocess_logits_for_metrics`.
        """
        rows = torch.as_tensor(prediction.predictions)
        if rows.ndim != 2:
            raise ValueError(
                f"Expected rows (batch, row width), got predictions {tuple(rows.shape)}. Pass preprocess_logits_for_metrics to the Trainer too."
            )
        self.metrics.append(rows.cpu())
        if not compute_result:
            return {}
        scores = self.metrics.compute()
        self.metrics.reset()
        return scores
