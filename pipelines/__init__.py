"""The audio-visual-segmentation pipeline and tools to draw its results. Importing this package registers the task."""

from transformers.pipelines import PIPELINE_REGISTRY

import modeling_pcmanet as modeling_pcmanet
from modeling_pcmanet.configuration_pcmanet import PIPELINE_TAG
from pcmanet.files import DEFAULT_MODEL, find_checkpoint

from .audio_visual_segmentation import TASK, AudioVisualSegmentationPipeline


__all__ = ["AudioVisualSegmentationPipeline"]


def _complete_registration() -> None:
    """Add what only an installed package has: the default checkpoint, and the Hub's name of the task."""
    # A copy, because the pipeline writes its own entry into every checkpoint that it saves.
    PIPELINE_REGISTRY.supported_tasks[TASK] = {
        **PIPELINE_REGISTRY.supported_tasks[TASK],
        "default": {"model": (find_checkpoint(DEFAULT_MODEL), None)},
    }
    PIPELINE_REGISTRY.task_aliases.setdefault(PIPELINE_TAG, TASK)


_complete_registration()
