"""Mean IoU and F score over the classes of sounding objects, as in AVSBench-semantic: a module for the `evaluate` library."""

from typing import Any, cast

import evaluate

# `evaluate.load` takes the first metric class in this namespace, so the base class must not be imported by name.
from pcmanet.dataset_scripts.metrics import Protocol, SemanticMetrics, evaluate_module


class AvsSemantic(evaluate_module.ClipEvaluation):
    """Metrics of semantic audio-visual segmentation. Each example is a clip.

    `compute` has the same form as in `mean_iou`.

    Args:
        num_labels: Number of classes including background, which is class 0 (AVSBench-semantic: 71).
        protocol: `"official"` (per frame and class), `"batch"` (the same per call of `add_batch`) or `"dataset"` (pixels are summed before the ratio).
        ignore_index: Label of pixels that are not counted.
        report_published_no_background: Also return the published no-background scores, which drop the last class instead of the background.
        **options: Passed on by `evaluate.load`.
    """

    def __init__(
        self,
        *,
        num_labels: int = 71,
        protocol: Protocol = "official",
        ignore_index: int = 255,
        report_published_no_background: bool = False,
        **options: Any,
    ):
        metrics = SemanticMetrics(
            num_labels,
            protocol,
            ignore_index=ignore_index,
            report_published_no_background=report_published_no_background,
        )
        super().__init__(metrics, binary=False, ignore_index=ignore_index, **options)

    def compute(
        self, *, num_labels: int | None = None, ignore_index: int | None = None, **inputs: Any
    ) -> dict[str, float]:
        """Compute the scores; `num_labels` and `ignore_index` can be passed here, as to `mean_iou`, for this call.

        Args:
            num_labels: Number of classes; None = the number with which the module was loaded.
            ignore_index: Label of pixels that are not counted; None = that with which the module was loaded.
            **inputs: As for the other modules: `predictions`, `references` and `protocol`.

        Raises:
            ValueError: If clips were added before with another setting, or as for the other modules.
        """
        loaded = cast(SemanticMetrics, self.metrics)
        classes = loaded.num_labels if num_labels is None else num_labels
        ignored = loaded.ignore_index if ignore_index is None else ignore_index
        if (classes, ignored) == (loaded.num_labels, loaded.ignore_index):
            return super().compute(**inputs)
        if len(loaded):
            raise ValueError(
                f"{len(loaded)} clips were added with num_labels={loaded.num_labels} and ignore_index={loaded.ignore_index}, but "
                f"compute() got {classes} and {ignored}. Pass these to evaluate.load() instead."
            )
        report = loaded.report_published_no_background
        self.metrics = SemanticMetrics(
            classes, loaded.protocol, ignore_index=ignored, report_published_no_background=report
        )
        try:
            return super().compute(**inputs)
        finally:
            self.metrics = loaded

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean IoU and F score over classes, by the protocols of AVSBench-semantic, with a correct no-background score.",
            citation=evaluate_module.AVSBENCH_CITATION,
            inputs_description=(
                "predictions: class indices, one array (frames, height, width) per clip. references: class indices, in the same form. "
                "Returns miou and f_score in [0, 1], also without background and over the seen classes, classes_seen and frames."
            ),
            features=evaluate_module.clip_features()[:1],
            reference_urls=["https://arxiv.org/abs/2301.13190"],
        )
