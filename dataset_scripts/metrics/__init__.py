"""Metrics of AVSBench and AVSBench-Robust. Import them from here."""

from .segmentation import (
    IGNORE_INDEX,
    Audio,
    BinaryMetrics,
    ClipMetrics,
    FalsePositiveMetrics,
    Protocol,
    RobustnessMetrics,
    SemanticMetrics,
    binary_iou,
    build_metrics,
    class_counts,
    class_iou,
    code_histogram,
    f_score,
    f_thresholds,
    foreground_counts,
    quantize_probabilities,
    reduce_logits,
    threshold_counts,
)
from .trainer import TrainerMetrics


__all__ = [
    "IGNORE_INDEX",
    "Audio",
    "BinaryMetrics",
    "ClipMetrics",
    "FalsePositiveMetrics",
    "Protocol",
    "RobustnessMetrics",
    "SemanticMetrics",
    "TrainerMetrics",
    "binary_iou",
    "build_metrics",
    "class_counts",
    "class_iou",
    "code_histogram",
    "f_score",
    "f_thresholds",
    "foreground_counts",
    "quantize_probabilities",
    "reduce_logits",
    "threshold_counts",
]
