"""Scores on positive audio and false-positive rates on negative audio (AVSBench-Robust): a module for the `evaluate` library."""

from typing import Any

import datasets
import evaluate

# `evaluate.load` takes the first metric class in this namespace, so the base class must not be imported by name.
from pcmanet.dataset_scripts.metrics import IGNORE_INDEX, Protocol, RobustnessMetrics, evaluate_module


class AvsRobustness(evaluate_module.ClipEvaluation):
    """Metrics of AVSBench-Robust. Each example is a clip with one type of audio.

    Args:
        num_labels: 1 for masks of 0 and 1 or probabilities, otherwise the number of classes with background as class 0.
        protocol: `"official"` (per clip), `"batch"` (per call of `add_batch`) or `"dataset"` (pixels are summed before the ratio).
        ignore_index: Label of pixels that are not counted; None = all pixels are counted.
        **options: Passed on by `evaluate.load`.
    """

    def __init__(
        self, *, num_labels: int = 1, protocol: Protocol = "official", ignore_index: int | None = None, **options: Any
    ):
        metrics = RobustnessMetrics(
            num_labels, protocol, ignore_index=IGNORE_INDEX if ignore_index is None else ignore_index
        )
        super().__init__(metrics, binary=num_labels == 1, ignore_index=ignore_index, **options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="IoU and F score on positive audio, false-positive rate on negative audio, and their harmonic means.",
            citation=evaluate_module.ROBUST_CITATION,
            inputs_description=(
                "predictions, references: one array (frames, height, width) per clip, as for avs_binary or avs_semantic; the references are the masks of "
                "positive audio. audio: positive, silence, noise or off_screen, one string per clip. "
                "Returns the scores on positive audio, false_positive_rate (mean and per type of audio), g_miou and g_f_score."
            ),
            features=evaluate_module.clip_features(audio=datasets.Value("string")),
            reference_urls=["https://arxiv.org/abs/2502.00358"],
        )
