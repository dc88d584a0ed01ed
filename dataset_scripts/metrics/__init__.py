"""Metrics of AVSBench and AVSBench-Robust."""

from .accumulators import BinaryMetrics, FalsePositiveMetrics, RobustnessMetrics, SemanticMetrics
from .trainer import TrainerMetrics


__all__ = ["BinaryMetrics", "FalsePositiveMetrics", "RobustnessMetrics", "SemanticMetrics", "TrainerMetrics"]
