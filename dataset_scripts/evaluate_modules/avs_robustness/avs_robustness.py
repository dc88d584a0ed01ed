"""Does a model listen? Scores with the true sound against false positives with a wrong one: a module of the `evaluate` library."""

from typing import Any

import datasets
import evaluate
import torch

from pcmanet.dataset_scripts.metrics import evaluate_module
from pcmanet.dataset_scripts.metrics.accumulators import Protocol, RobustnessMetrics


class AvsRobustness(evaluate_module.ClipEvaluation):
    """The protocol of AVSBench-Robust, one clip with one sound per example.

    Args:
        num_labels: 1 for masks of 0 and 1 or probabilities, else the number of classes with background as class 0.
        protocol: `"official"` (per clip), `"batch"` (per call of `add_batch`) or `"dataset"` (pixels summed before the ratio).
        ignore_index: label of pixels that are not counted; None = none.
        **options: what `evaluate.load` hands over.
    """

    def __init__(
        self, *, num_labels: int = 1, protocol: Protocol = "official", ignore_index: int | None = None, **options: Any
    ):
        metrics = RobustnessMetrics(
            num_labels, protocol, **({} if ignore_index is None else {"ignore_index": ignore_index})
        )
        super().__init__(metrics, binary=num_labels == 1, ignore_index=ignore_index, **options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="IoU and F score on positive audio, false-positive rate on negative audio, and their harmonic means.",
            citation=evaluate_module.ROBUST_CITATION,
            inputs_description=(
                "predictions, references: one array (frames, height, width) per clip, as for avs_binary or avs_semantic; the references are the masks of "
                "the true sound. audio: positive, silence, noise or off_screen, one word per clip. "
                "Returns the scores on positive audio, false_positive_rate in all and per kind, g_miou and g_f_score."
            ),
            features=evaluate_module.clip_features(audio=datasets.Value("string")),
            reference_urls=["https://arxiv.org/abs/2502.00358"],
        )

    def _count(self, inputs: dict[str, Any]) -> None:
        # The clips of one call that were heard with one kind of audio are one batch.
        rows: dict[str, list[torch.Tensor]] = {}
        for prediction, reference, audio in zip(
            inputs["predictions"], inputs["references"], inputs["audio"], strict=True
        ):
            row = self.metrics.count_predictions(*self._clip(prediction, reference), audio=audio)
            rows.setdefault(audio, []).append(row)
        for audio, batch in rows.items():
            self.metrics.append(torch.cat(batch), audio=audio)
