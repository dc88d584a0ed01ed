"""The audio-visual-segmentation pipeline and the pictures it draws; importing this package registers the task."""

# Registers the architecture, so that `pipeline(...)` loads our checkpoints after this one import. Only here: the modules
# of this package know nobody, because they also run as remote code where our package is not installed.
import modeling_pcmanet as modeling_pcmanet

from .audio_visual_segmentation import AudioVisualSegmentationPipeline


__all__ = ["AudioVisualSegmentationPipeline"]
