"""The metrics inside transformers' Trainer, which never holds full-size logits of more than one batch.

Pixels are counted in `preprocess_logits_for_metrics`, on the logits of one batch of one process. The Trainer gathers one
row of sums per clip.
"""

import torch
from torch import Tensor
from transformers import EvalPrediction

from .segmentation import ClipMetrics


GATHER_PADDING = -100  # what the Trainer pads labels with if another process has clips with more frames


class TrainerMetrics:
    """Provide `compute_metrics` and `preprocess_logits_for_metrics` for a Trainer, based on an accumulator.

    Only the labels determine what is scored: pixels of frames that are padded or not annotated must be `ignore_index`,
    as the processor sets them. By default, they are the only entry of a batch that the Trainer treats as labels.

    ```python
    metrics = TrainerMetrics(BinaryMetrics())
    arguments = TrainingArguments(..., batch_eval_metrics=True, remove_unused_columns=False)
    count = metrics.preprocess_logits_for_metrics
    Trainer(..., args=arguments, compute_metrics=metrics, preprocess_logits_for_metrics=count)
    ```

    Clips are numbered in the order in which the Trainer passes them, which is the order of the dataset for any number of
    processes. With the protocol `"batch"`, a batch is one step of all processes together. The Trainer does not signal
    when an evaluation begins. After an interrupted evaluation (in a notebook), call `metrics.metrics.reset()`;
    otherwise, its clips are counted again.

    Args:
        metrics: The accumulator, which this object resets after each evaluation.
    """

    def __init__(self, metrics: ClipMetrics):
        self.metrics = metrics

    def preprocess_logits_for_metrics(self, logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Count a batch.

        Args:
            logits: The outputs of the model without the loss, or only the first of them: (batch, frames, num_labels,
                height, width).
            labels: (batch, frames, height, width).

        Returns:
            float64 (batch, row width): sums that replace the predictions in the Trainer.

        Raises:
            ValueError: If the Trainer treats several entries of the batch as labels, or as for `ClipMetrics.update`.
        """
        logits = logits if isinstance(logits, Tensor) else logits[0]
        if not isinstance(labels, Tensor):
            raise ValueError(
                f"Expected the labels of the batch alone, got {len(labels)} tensors from the Trainer. Set "
                'TrainingArguments(label_names=["labels"]), or leave label_names out.'
            )
        # Frames that only another process has are not scored.
        labels = labels.masked_fill(labels == GATHER_PADDING, self.metrics.ignore_index)
        rows = self.metrics.count(logits, labels)
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
        rows = torch.as_tensor(prediction.predictions, device="cpu")
        if rows.ndim != 2:
            raise ValueError(
                f"Expected rows (batch, row width), got predictions {tuple(rows.shape)}. Pass preprocess_logits_for_metrics to the Trainer too."
            )
        self.metrics.append(rows)
        if not compute_result:
            return {}
        scores = self.metrics.compute()
        self.metrics.reset()
        return scores
