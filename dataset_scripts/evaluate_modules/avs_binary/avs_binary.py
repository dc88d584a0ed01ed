"""IoU and F score of the masks of sounding objects, as in AVSBench's S4 and MS3: a module for the `evaluate` library."""

from typing import Any

import evaluate

# `evaluate.load` takes the first metric class in this namespace, so the base class must not be imported by name.
from pcmanet.dataset_scripts.metrics import IGNORE_INDEX, BinaryMetrics, Protocol, evaluate_module


class AvsBinary(evaluate_module.ClipEvaluation):
    """Metrics of binary audio-visual segmentation. Each example is a clip.

    Args:
        protocol: `"official"` (per clip), `"batch"` (per call of `add_batch`) or `"dataset"` (pixels are summed before the ratio).
        ignore_index: Label of pixels that are not counted; None = all pixels are counted.
        **options: Passed on by `evaluate.load`.
    """

    def __init__(self, *, protocol: Protocol = "official", ignore_index: int | None = None, **options: Any):
        metrics = BinaryMetrics(protocol, ignore_index=IGNORE_INDEX if ignore_index is None else ignore_index)
        super().__init__(metrics, binary=True, ignore_index=ignore_index, **options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean IoU (J) and F score of foreground masks over the frames of clips, by the protocols of AVSBench.",
            citation=evaluate_module.AVSBENCH_CITATION,
            inputs_description=(
                "predictions: masks of 0 and 1, or probabilities in [0, 1], one array (frames, height, width) per clip. "
                "references: masks of 0 and 1, in the same form. Returns miou and f_score in [0, 1], frames and groups."
            ),
            features=evaluate_module.clip_features(),
            reference_urls=["https://arxiv.org/abs/2207.05042"],
        )
