"""Convert the clips of every dataset to arrays, the input of augmentation and collation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from modeling_pcmanet.image_processing_pcmanet import PCMANetImageProcessor
from modeling_pcmanet.media_pcmanet import media_source, read_audio
from pcmanet.dataset_scripts.avsbench.masks import to_binary
from pcmanet.dataset_scripts.metrics.segmentation import IGNORE_INDEX
from pcmanet.dataset_scripts.sounding_shapes.clips import SyntheticClip
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES


@dataclass(frozen=True, eq=False)
class ClipArrays:
    """One clip before processing.

    Attributes:
        name: Name of the clip in error messages.
        frames: uint8 (frames, height, width, 3), RGB.
        masks: uint8 (frames, height, width), class indices; 255 is ignored and fills frames that are not annotated.
        annotated_frames: bool (frames,), which frames are annotated.
        waveform: float32 (channels, samples), full scale is [-1, 1]; None if the clip has features only.
        sampling_rate: Sampling rate of the waveform, in hertz.
        timestamps: float64 (frames,), seconds since the start of the audio.
        objects: Names of the sounding objects (for Sounding Shapes, of all visible objects), None if unknown. See
            layouts.py for "off-the-screen" and "background".
        log_mel: float32 (frames, 1, 96, 64), features that are part of the data, else None.
    """

    name: str
    frames: np.ndarray
    masks: np.ndarray
    annotated_frames: np.ndarray
    waveform: np.ndarray | None
    sampling_rate: int | None
    timestamps: np.ndarray
    objects: frozenset[str] | None
    log_mel: np.ndarray | None = None


def to_arrays(clip: SyntheticClip | Mapping[str, Any] | ClipArrays, binary: bool) -> ClipArrays:
    """Convert a clip to arrays.

    Args:
        clip: A clip of Sounding Shapes, or a row of `load_avsbench` or of its export, also with `with_format` "numpy" or
            "torch", or with its audio as an `Audio` column. `ClipArrays` are returned unchanged.
        binary: Whether masks become 0 (silent) and 1 (sounding), or stay class indices.

    Returns:
        The clip as arrays.

    Raises:
        ValueError: If a row has neither audio nor features, its audio cannot be decoded, or a frame has more than 8 bits per
            channel.
    """
    if isinstance(clip, ClipArrays):
        return clip
    if isinstance(clip, SyntheticClip):
        return _from_synthetic(clip, binary)
    waveform, sampling_rate = _decode_audio(clip)
    annotated_frames = np.asarray(clip["annotated_frames"], dtype=bool)
    frames = np.stack([_to_image_array(frame) for frame in clip["frames"]])
    masks = np.full(frames.shape[:3], IGNORE_INDEX, dtype=np.uint8)
    for index in np.flatnonzero(annotated_frames):
        mask = clip["masks"][index]
        masks[index] = mask[0] if isinstance(mask, torch.Tensor) else mask
    return ClipArrays(
        name=clip["id"],
        frames=frames,
        masks=to_binary(masks) if binary else masks,
        annotated_frames=annotated_frames,
        waveform=waveform,
        sampling_rate=sampling_rate,
        timestamps=np.asarray(clip["timestamps"], dtype=np.float64),
        objects=None if clip["objects"] is None else frozenset(clip["objects"]),
        log_mel=None if clip.get("log_mel") is None else np.asarray(clip["log_mel"], dtype=np.float32),
    )


def _from_synthetic(clip: SyntheticClip, binary: bool) -> ClipArrays:
    masks = clip.binary if binary else clip.masks
    visible = frozenset(CLASSES[label - 1] for label in clip.object_classes)
    return ClipArrays(
        name="a clip of Sounding Shapes",
        frames=clip.frames,
        masks=np.where(clip.annotated_frames[:, None, None], masks, np.uint8(IGNORE_INDEX)),
        annotated_frames=clip.annotated_frames,
        waveform=clip.waveform[None],
        sampling_rate=clip.sampling_rate,
        timestamps=clip.timestamps,
        # The classes in the audio of a negative clip are unknown.
        objects=None if clip.negative else visible,
    )


def _to_image_array(frame: Any) -> np.ndarray:
    """Convert a frame to RGB; `datasets` decodes it as a PIL image, an array or a channels-first tensor."""
    if isinstance(frame, torch.Tensor):
        return frame.permute(1, 2, 0).numpy()
    return np.asarray(PCMANetImageProcessor.to_rgb(frame) if isinstance(frame, Image.Image) else frame)


def _decode_audio(row: Mapping[str, Any]) -> tuple[np.ndarray | None, int | None]:
    """Decode the audio of a row; None if log-mel features replace it."""
    audio = row["audio"]
    missing = audio is None or (isinstance(audio, Mapping) and not any(audio.values()))
    source = None if missing else media_source(audio)
    if source is None and row.get("log_mel") is None:
        raise ValueError(
            f"Clip {row['id']!r} has neither audio nor log-mel features. Load it with its wav or with log_mel=True."
        )
    if source is None:
        return None, None
    try:
        return read_audio(source)
    except ValueError as error:
        raise ValueError(f"Clip {row['id']!r}: {error}") from error
