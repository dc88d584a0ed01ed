"""From clips of a data set to the batch of the model, through the processor."""

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from .synthetic import SyntheticClip
from .synthetic_sound import SAMPLING_RATE


class ClipCollator:
    """Collate function that hands clips to the processor, which makes the batch (see its module docstring).

    Args:
        processor: A `PCMANetProcessor`; it sets the picture size and the audio features.
        binary: True if labels are 0 silent and 1 sounding, False if they are class indexes.
    """

    def __init__(self, processor: ProcessorMixin, binary: bool) -> None:
        self.processor = processor
        self.binary = binary

    def __call__(self, clips: Sequence[SyntheticClip]) -> BatchFeature:
        """Make one batch; frames without annotation reach the model through `label_mask`."""
        return self.processor(
            videos=[clip.frames for clip in clips],
            audio=[clip.waveform for clip in clips],
            sampling_rate=SAMPLING_RATE,
            timestamps=[clip.timestamps for clip in clips],
            segmentation_maps=[self._maps(clip) for clip in clips],
            return_tensors="pt",
        )

    def _maps(self, clip: SyntheticClip) -> list[Any]:
        """One mask per frame, None where the frame is not annotated."""
        masks = clip.binary if self.binary else clip.masks
        return [mask if annotated else None for mask, annotated in zip(masks, clip.label_mask, strict=True)]
