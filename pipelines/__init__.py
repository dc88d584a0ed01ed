"""The audio-visual-segmentation pipeline and drawings of its results. Importing this package registers the task."""

import modeling_pcmanet as modeling_pcmanet

from .audio_visual_segmentation import AudioVisualSegmentationPipeline


__all__ = ["AudioVisualSegmentationPipeline"]
